// What `--memory` takes.
internal import ArgumentParser
internal import Machine

/// Sizes of memory: SIZE[,max=SIZE].
struct MemoryOption: ExpressibleByArgument {
    var bytes: UInt64
    var maximum: UInt64?

    init(bytes: UInt64) { self.bytes = bytes }

    init?(argument: String) {
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        guard let size = parts.first.flatMap(MemorySize.init), parts.count <= 2 else { return nil }
        bytes = size.bytes
        guard parts.count == 2 else { return }
        guard parts[1].hasPrefix("max="), let most = MemorySize(argument: String(parts[1].dropFirst(4))),
            most.bytes >= bytes
        else { return nil }
        maximum = most.bytes
    }

    /// Puts it into a configuration.
    func apply(to machine: inout MachineConfiguration) {
        machine.memory = bytes
        machine.wantedMemory = nil
        if let maximum { machine.maximumMemory = maximum }
    }

    var defaultValueDescription: String { "\(bytes >> 20)M" }
}

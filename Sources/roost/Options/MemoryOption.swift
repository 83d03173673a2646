// What `--memory` takes.
internal import ArgumentParser
internal import Machine

/// Sizes of memory: SIZE[,max=SIZE].
struct MemoryOption {
    var bytes: UInt64
    var maximum: UInt64?

    init(bytes: UInt64) { self.bytes = bytes }

    /// Reads an argument; throws what is wrong with it.
    init(parsing argument: String) throws {
        var words = OptionWords(argument)
        guard let size = MemorySize(argument: words.first) else {
            throw ValidationError("\(words.first) is no size; one is 512M or 2G")
        }
        bytes = size.bytes
        maximum = try words.size("max")
        try words.finish()
        if let maximum, maximum < bytes { throw ValidationError("max is less than what there is at first") }
    }

    /// Puts it into a configuration.
    func apply(to machine: inout MachineConfiguration) {
        machine.memory = bytes
        machine.wantedMemory = nil
        if let maximum { machine.maximumMemory = maximum }
    }
}

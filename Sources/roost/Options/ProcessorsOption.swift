// What `--cpus` takes.
internal import ArgumentParser
internal import Machine

/// Numbers of processors: N[,max=M].
struct ProcessorsOption: ExpressibleByArgument {
    var count: Int
    var maximum: Int?

    init(count: Int) { self.count = count }

    init?(argument: String) {
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        guard let count = parts.first.flatMap({ Int($0) }), parts.count <= 2 else { return nil }
        self.count = count
        guard parts.count == 2 else { return }
        guard parts[1].hasPrefix("max="), let maximum = Int(parts[1].dropFirst(4)), maximum >= count else { return nil }
        self.maximum = maximum
    }

    /// Puts it into a configuration.
    func apply(to machine: inout MachineConfiguration) {
        machine.processors = count
        if let maximum { machine.maximumProcessors = maximum }
    }

    var defaultValueDescription: String { "\(count)" }
}

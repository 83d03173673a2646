// What `--cpus` takes.
internal import ArgumentParser
internal import Machine

/// Numbers of processors: N[,max=M].
struct ProcessorsOption {
    var count: Int
    var maximum: Int?

    init(count: Int) { self.count = count }

    /// Reads an argument; throws what is wrong with it.
    init(parsing argument: String) throws {
        var words = OptionWords(argument)
        guard let count = Int(words.first), 1...64 ~= count else { throw ValidationError("there can be 1 to 64") }
        self.count = count
        maximum = try words.number("max", UInt64(count)...64).map { Int($0) }
        try words.finish()
    }

    /// Puts it into a configuration.
    func apply(to machine: inout MachineConfiguration) {
        machine.processors = count
        if let maximum { machine.maximumProcessors = maximum }
    }
}

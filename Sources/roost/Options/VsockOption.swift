// What `--vsock` takes.
internal import ArgumentParser
internal import Machine

/// Sockets between guest and host: PATH[,cid=N].
struct VsockOption {
    var value: VsockConfiguration

    /// Reads an argument; throws what is wrong with it.
    init(parsing argument: String) throws {
        var words = OptionWords(argument)
        guard !words.first.isEmpty else { throw ValidationError("no path") }
        value = VsockConfiguration(path: words.first)
        if let cid = try words.number("cid", 3...UInt64(UInt32.max - 1)) { value.cid = UInt32(cid) }
        try words.finish()
    }
}

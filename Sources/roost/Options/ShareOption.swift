// What `--share` takes.
internal import ArgumentParser
internal import Machine

/// A folder of the host's: PATH[,tag=NAME][,readonly].
struct ShareOption {
    var value: FolderConfiguration

    /// Reads an argument; throws what is wrong with it.
    init(parsing argument: String) throws {
        var words = OptionWords(argument)
        guard !words.first.isEmpty else { throw ValidationError("no folder") }
        value = FolderConfiguration(path: words.first)
        value.isReadOnly = try words.flag("readonly")
        value.tag = try words.value("tag", "at most 36 bytes") { $0.utf8.count <= 36 ? $0 : nil } ?? value.tag
        try words.finish()
    }
}

// What `--share` takes.
import ArgumentParser
import Machine

/// A folder of the host's: PATH[,tag=NAME][,readonly].
struct ShareOption: ExpressibleByArgument {
    var value: FolderConfiguration

    init?(argument: String) {
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        guard let path = parts.first, !path.isEmpty else { return nil }
        value = FolderConfiguration(path: path)
        for part in parts.dropFirst() {
            if part == "readonly", !value.isReadOnly {
                value.isReadOnly = true
            } else if part.hasPrefix("tag="), 5...40 ~= part.utf8.count {
                value.tag = String(part.dropFirst(4))
            } else {
                return nil
            }
        }
    }
}

// What `--vsock` takes.
import ArgumentParser
import Machine

/// Sockets between guest and host: PATH[,cid=N].
struct VsockOption: ExpressibleByArgument {
    var value: VsockConfiguration

    init?(argument: String) {
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        guard let path = parts.first, !path.isEmpty, parts.count <= 2 else { return nil }
        value = VsockConfiguration(path: path)
        guard parts.count == 2 else { return }
        guard parts[1].hasPrefix("cid="), let cid = UInt32(parts[1].dropFirst(4)), 3..<UInt32.max ~= cid else {
            return nil
        }
        value.cid = cid
    }
}

// The program that runs in guests, as it lies beside Roost.
internal import Foundation

/// Finds `roost-agent`: beside the running program, or in `../lib/roost` from there; `ROOST_AGENT` names another.
enum AgentProgram {
    /// The version that images of this Roost have: raised when the agent learns something, or an image has something new.
    static let version = 7

    static func path() throws(ImageError) -> String {
        let environment = ProcessInfo.processInfo.environment
        let own =
            (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        let folder = (own as NSString).deletingLastPathComponent
        let places = [
            environment["ROOST_AGENT"], folder + "/roost-agent", folder + "/../lib/roost/roost-agent",
            "/usr/lib/roost/roost-agent",
        ].compactMap { $0 }
        guard let found = places.first(where: { FileManager.default.isExecutableFile(atPath: $0) }) else {
            throw ImageError(
                .notFound, "roost-agent is missing beside \(own); `make build` makes it, `make install` installs it")
        }
        return found
    }

    static func contents() throws(ImageError) -> [UInt8] {
        let path = try path()
        guard let data = FileManager.default.contents(atPath: path) else {
            throw ImageError(.fileSystem, "cannot read \(path)")
        }
        return Array(data)
    }
}

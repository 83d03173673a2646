// Running the host's programs: found in PATH or the usual system folders, output captured, failures in words.
internal import Foundation

/// The host's own programs.
enum Tool {
    /// Where a program is, or nil.
    static func find(_ name: String) -> String? {
        if name.hasPrefix("/") { return name }
        let path = ProcessInfo.processInfo.environment["PATH"] ?? ""
        let folders = path.split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        return folders.map { $0 + "/" + name }.first { FileManager.default.isExecutableFile(atPath: $0) }
    }

    /// Where a program is; says how to get it otherwise.
    static func require(_ name: String, package: String? = nil) throws(ImageError) -> String {
        if let path = find(name) { return path }
        throw ImageError(
            .missingTool, "\(name) is not installed; run `make setup` or `apt-get install \(package ?? name)`")
    }

    /// Runs a program to its end and returns its standard output.
    static func output(_ name: String, _ arguments: [String]) throws(ImageError) -> [UInt8] {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try require(name))
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardInput = FileHandle.nullDevice
        do {
            try process.run()
        } catch {
            throw ImageError(.toolFailed, "cannot run \(name): \(error)")
        }
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw ImageError(.toolFailed, "\(name) \(arguments.joined(separator: " ")) failed")
        }
        return Array(data)
    }
}

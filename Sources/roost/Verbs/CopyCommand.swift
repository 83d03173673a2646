// `roost copy`: files between the host and a machine's guest, as archives through its agent.
internal import AgentClient
internal import AgentProtocol
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Machines

/// `roost copy`.
struct CopyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "copy", abstract: "Copy files and folders to a running machine's guest, or from it.",
        discussion: """
            One side is NAME:PATH. As with cp, a target that is a folder takes the source in, any other is its new name.
            """, aliases: ["cp"])

    @Argument(help: "What is copied: PATH or NAME:PATH.")
    var source: String

    @Argument(help: "Where to: PATH or NAME:PATH.")
    var target: String

    func run() throws {
        switch (Self.inGuest(source), Self.inGuest(target)) {
        case (nil, let (name, path)?): try send(source, to: try MachineStore.standard.find(name), path)
        case (let (name, path)?, nil): try fetch(path, from: try MachineStore.standard.find(name), target)
        default: throw ValidationError("one of the two must be in a guest, as NAME:PATH")
        }
    }

    private static func inGuest(_ place: String) -> (name: String, path: String)? {
        guard let colon = place.firstIndex(of: ":"), !place[..<colon].contains("/"), colon != place.startIndex else {
            return nil
        }
        let path = String(place[place.index(after: colon)...])
        return (String(place[..<colon]), path.isEmpty ? "." : path)
    }

    /// Unpacks an archive of one file or folder: into $1 if that is a folder, else under the name $1.
    private static let unpack = """
        if [ -d "$1" ]; then exec tar -x -f - -C "$1"; fi
        name=$(basename "$1" | sed 's/[\\\\&,]/\\\\&/g')
        exec tar -x -f - -C "$(dirname "$1")" --transform "s,^[^/]*,$name,"
        """

    private func send(_ path: String, to machine: StoredMachine, _ target: String) throws {
        guard FileManager.default.fileExists(atPath: path) else { throw ValidationError("there is no \(path)") }
        let url = URL(fileURLWithPath: path).standardizedFileURL
        let archive = Pipe()
        let tar = try Self.tar(
            ["-c", "-f", "-", "-C", url.deletingLastPathComponent().path, "--", url.lastPathComponent], output: archive)
        let end = try Self.inGuest(
            machine, ["/bin/sh", "-c", Self.unpack, "sh", target],
            input: archive.fileHandleForReading.fileDescriptor, output: 1)
        tar.waitUntilExit()
        try finish(end, tar)
    }

    private func fetch(_ path: String, from machine: StoredMachine, _ target: String) throws {
        let archive = Pipe()
        let tar = try Self.run(
            "/bin/sh", ["-c", Self.unpack, "sh", target], input: archive.fileHandleForReading, output: nil)
        let pack = "exec tar -c -f - -C \"$(dirname \"$1\")\" -- \"$(basename \"$1\")\""
        let end = try Self.inGuest(
            machine, ["/bin/sh", "-c", pack, "sh", path], input: nil,
            output: archive.fileHandleForWriting.fileDescriptor)
        try archive.fileHandleForWriting.close()
        tar.waitUntilExit()
        try finish(end, tar)
    }

    private func finish(_ end: ProgramEnd?, _ tar: Process) throws {
        guard end == .exited(0), tar.terminationStatus == 0 else {
            throw ExitStatus(code: ExitStatus.machine, message: "not all of \(source) could be copied")
        }
    }

    private static func inGuest(
        _ machine: StoredMachine, _ command: [String], input: Int32?, output: Int32
    ) throws -> ProgramEnd? {
        let agent = try machine.agent(within: 60)
        return try agent.run(
            ProgramRequest(command: command), ProgramStreams(input: input, output: output, errors: 2))
    }

    private static func tar(_ arguments: [String], output: Pipe) throws -> Process {
        let process = try run("/usr/bin/env", ["tar"] + arguments, input: nil, output: output.fileHandleForWriting)
        try output.fileHandleForWriting.close()
        return process
    }

    private static func run(
        _ program: String, _ arguments: [String], input: FileHandle?, output: FileHandle?
    ) throws -> Process {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        process.standardInput = input ?? FileHandle.nullDevice
        if let output { process.standardOutput = output }
        try process.run()
        return process
    }
}

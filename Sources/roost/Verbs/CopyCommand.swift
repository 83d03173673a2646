// `roost copy`: files between the host and a machine's guest, as archives through its agent.
//
// A guest may send whatever it likes: CopyScripts has the host look at it before it is in its place.
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
            A source that is a symbolic link is followed; others are copied as they are.
            """, aliases: ["cp"])

    @Argument(help: "What is copied: PATH or NAME:PATH.")
    var source: String

    @Argument(help: "Where to: PATH or NAME:PATH.")
    var target: String

    func run() throws {
        // Whoever gives up is to be an error of the other, not the end of this process.
        Terminal.prepareStandardStreams()
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

    private func send(_ path: String, to machine: StoredMachine, _ target: String) throws {
        guard FileManager.default.fileExists(atPath: path) else { throw ValidationError("there is no \(path)") }
        // A folder that is told without its name still has one.
        let isNameless = [".", ".."].contains((path as NSString).lastPathComponent)
        let path = isNameless ? URL(fileURLWithPath: path).standardizedFileURL.path : path
        let archive = Pipe()
        let pack = try Self.onHost(CopyScripts.pack(path), input: nil, output: archive.fileHandleForWriting)
        try archive.fileHandleForWriting.close()
        let end = try {
            // Where the guest has given up, nobody reads what is packed.
            defer { try? archive.fileHandleForReading.close() }
            return try Self.inGuest(
                machine, CopyScripts.unpackInGuest(path, at: target),
                input: archive.fileHandleForReading.fileDescriptor, output: 1)
        }()
        pack.waitUntilExit()
        try finish(end, pack)
    }

    private func fetch(_ path: String, from machine: StoredMachine, _ target: String) throws {
        let archive = Pipe()
        let unpack = try Self.onHost(
            CopyScripts.unpackOnHost(path, at: target), input: archive.fileHandleForReading, output: nil)
        try archive.fileHandleForReading.close()
        let end = try {
            // It is at an end, whatever came: what waits for more doesn't do so for ever, and takes its traces away.
            defer {
                try? archive.fileHandleForWriting.close()
                unpack.waitUntilExit()
            }
            return try Self.inGuest(
                machine, CopyScripts.pack(path), input: nil, output: archive.fileHandleForWriting.fileDescriptor)
        }()
        try finish(end, unpack)
    }

    private func finish(_ end: ProgramEnd?, _ process: Process) throws {
        guard end == .exited(0), process.terminationStatus == 0 else {
            throw ExitStatus(code: ExitStatus.machine, message: "not all of \(source) could be copied")
        }
    }

    private static func inGuest(
        _ machine: StoredMachine, _ script: [String], input: Int32?, output: Int32
    ) throws -> ProgramEnd? {
        let agent = try machine.agent(within: 60)
        return try agent.run(
            ProgramRequest(command: ["/bin/sh"] + script), ProgramStreams(input: input, output: output, errors: 2))
    }

    private static func onHost(_ script: [String], input: FileHandle?, output: FileHandle?) throws -> Process {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = script
        process.standardInput = input ?? FileHandle.nullDevice
        if let output { process.standardOutput = output }
        try process.run()
        return process
    }
}

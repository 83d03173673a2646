// What `roost image build` and the script that fetches kernels do before they fetch anything.
import Foundation
import Images
import Testing

@Suite("Building images", .enabled("needs the built command") { TerminalSession.roost != nil })
struct ImageBuildTests {
    /// Runs a program in a folder; its status and what it wrote to standard error.
    private func execute(
        _ program: String, _ arguments: [String], in folder: String, _ environment: [String: String]
    ) throws -> (status: Int32, error: String) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        process.currentDirectoryURL = URL(fileURLWithPath: folder)
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        let log = folder + "/.errors"
        try Data().write(to: URL(fileURLWithPath: log))
        process.standardError = try FileHandle(forWritingTo: URL(fileURLWithPath: log))
        try process.run()
        process.waitUntilExit()
        return (process.terminationStatus, try String(contentsOfFile: log, encoding: .utf8))
    }

    @Test("A folder that is no image isn't replaced", arguments: ["--replace", "--if-outdated"])
    func others(option: String) throws {
        let home = try MachineHome()
        let folder = home.folder + "/thesis"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try Data("mine".utf8).write(to: URL(fileURLWithPath: folder + "/chapter"))
        let build = ["image", "build", "debian", "--mirror", "http://127.0.0.1:1", option]
        // By its path, and by its name in the folder where the command is run.
        for name in [folder, "thesis"] {
            let run = try execute(
                try #require(TerminalSession.roost), build + ["--output", name], in: home.folder, home.environment)
            #expect(run.status == 72 && run.error.contains("no guest image"), "\(name): \(run)")
        }
        #expect(FileManager.default.contents(atPath: folder + "/chapter") == Data("mine".utf8))
    }

    @Test("An image in the folder where the command is run is found there, with --if-missing and --if-outdated")
    func here() throws {
        let home = try MachineHome()
        let image = try home.image([0xF4])
        let path = image + "/image.json"
        let roost = try #require(TerminalSession.roost)
        func build(_ option: String) throws -> (status: Int32, error: String) {
            try execute(
                roost, ["image", "build", "debian", "--mirror", "http://127.0.0.1:1", "-o", "image", option],
                in: home.folder, home.environment)
        }
        let isThere = try build("--if-missing")
        #expect(isThere.status == 0, "\(isThere)")
        var manifest = try JSONDecoder().decode(ImageManifest.self, from: Data(contentsOf: URL(fileURLWithPath: path)))
        for agent in 1...1000 where !manifest.isCurrent { manifest.agent = agent }
        let text = try JSONEncoder().encode(manifest)
        try text.write(to: URL(fileURLWithPath: path))
        let isCurrent = try build("--if-outdated")
        #expect(isCurrent.status == 0 && FileManager.default.contents(atPath: path) == text, "\(isCurrent)")
    }

    @Test("A kernel that can't be fetched leaves nothing behind, and the script ends without a complaint of its own")
    func kernels() throws {
        let home = try MachineHome()
        let tools = home.folder + "/bin"
        try FileManager.default.createDirectory(atPath: tools, withIntermediateDirectories: true)
        for (name, body) in [
            ("apt-cache", "echo '  Depends: linux-image-6.1.0-1-cloud-amd64'"),
            ("apt-get", "echo no mirror >&2; exit 100"),
        ] {
            let path = tools + "/" + name
            try Data("#!/bin/sh\n\(body)\n".utf8).write(to: URL(fileURLWithPath: path))
            try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
        }
        let script = URL(fileURLWithPath: #filePath).appendingPathComponent("../../../scripts/fetch-kernels")
            .standardized.path
        let run = try execute(
            "/bin/bash", [script], in: home.folder,
            ["PATH": tools + ":/usr/bin:/bin", "XDG_CACHE_HOME": home.folder + "/cache"])
        #expect(run.status == 1 && run.error == "no mirror\n", "\(run)")
        #expect(try FileManager.default.contentsOfDirectory(atPath: home.folder + "/cache/roost/kernels").isEmpty)
    }
}

// The command `roost`: its subcommands, and how its errors become one line and an exit status.
internal import ArgumentParser
internal import Foundation
internal import Images
internal import Machine
internal import Storage

@main
struct Roost: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Virtual machines for x86-64 Linux hosts.", version: "roost 0.1",
        subcommands: [RunCommand.self, ImageCommand.self, DiskCommand.self, DoctorCommand.self])

    static func main() {
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch let status as ExitStatus {
            if let message = status.message { complain(message) }
            Foundation.exit(status.code)
        } catch let error as MachineError {
            complain(error.description)
            Foundation.exit(ExitStatus.code(for: error))
        } catch let error as StorageError {
            complain(error.description)
            Foundation.exit(error.code == .inUse ? ExitStatus.diskInUse : ExitStatus.disk)
        } catch let error as ImageError {
            complain(error.description)
            Foundation.exit(ExitStatus.image)
        } catch {
            let code = exitCode(for: error)
            if code == .success { exit(withError: error) }
            if code == .validationFailure {
                complain(UsageMessage.text(for: error))
                Foundation.exit(ExitStatus.usage)
            }
            complain("\(error)")
            Foundation.exit(ExitStatus.failure)
        }
    }

    private static func complain(_ text: String) {
        let line = text.split(separator: "\n").first.map(String.init) ?? text
        FileHandle.standardError.write(Data("roost: \(line)\n".utf8))
    }
}

/// An end of the process with a status of its own kind; `docs/exit-status.md` lists them.
///
/// All are even: odd ones are what a guest writes to the debug-exit port.
struct ExitStatus: Error {
    static let usage: Int32 = 64
    static let kernel: Int32 = 66
    static let disk: Int32 = 68
    static let failure: Int32 = 70
    static let image: Int32 = 72
    static let diskInUse: Int32 = 74
    static let network: Int32 = 76
    static let memory: Int32 = 78
    static let processor: Int32 = 80
    static let console: Int32 = 82
    static let host: Int32 = 84
    static let tripleFault: Int32 = 86
    static let difference: Int32 = 88
    static let engine: Int32 = 90
    static let hypervisor: Int32 = 92

    var code: Int32
    var message: String?

    static func code(for error: MachineError) -> Int32 {
        switch error.code {
        case .boot: kernel
        case .memory: memory
        case .processor: processor
        case .hypervisor: hypervisor
        case .disk: disk
        case .diskInUse: diskInUse
        case .network, .port: network
        case .console: console
        default: host
        }
    }
}

// The command `roost`: its subcommands, and how its errors become one line and an exit status.
internal import AgentClient
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Images
internal import Machine
internal import Machines
internal import Storage

@main
struct Roost: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Virtual machines for x86-64 Linux hosts.", version: "roost 0.1",
        subcommands: [
            RunCommand.self, ExecCommand.self, ShellCommand.self, CopyCommand.self, StartCommand.self, StopCommand.self,
            KillCommand.self,
            PauseCommand.self,
            ResumeCommand.self, ResetCommand.self,
            ConsoleCommand.self, LogsCommand.self, EventsCommand.self, ListCommand.self, InfoCommand.self,
            TopCommand.self, SetCommand.self, AttachCommand.self, DetachCommand.self, InsertCommand.self,
            EjectCommand.self, ForwardCommand.self, MountCommand.self, UnmountCommand.self,
            RenameCommand.self, DeleteCommand.self,
            SnapshotCommand.self, RestoreCommand.self, CloneCommand.self, ExportCommand.self, ImportCommand.self,
            ImageCommand.self, DiskCommand.self, DoctorCommand.self, ManualCommand.self,
        ])

    static func main() {
        // Before anything large is let go: what the heap keeps is touched again when it is handed out.
        HostMemory.keepHeapSmall()
        do {
            let words = CommandLine.arguments.dropFirst()
            if ["run", MonitorProcess.word].contains(words.first) { Machine.prepareProcess() }
            if words.first == MonitorProcess.word, words.count == 2, let name = words.last {
                return try MonitorProcess.run(name)
            }
            var command = try parseAsRoot()
            try command.run()
        } catch {
            if let status = ExitStatus(known: error) {
                if let message = status.message { complain(message) }
                Foundation.exit(status.code)
            }
            let code = exitCode(for: error)
            if code == .success { exit(withError: error) }
            if code == .validationFailure {
                complain(UsageMessage.text(for: error))
                Foundation.exit(ExitStatus.usage)
            }
            complain("\(error)".split(separator: "\n").first.map(String.init) ?? "failed")
            Foundation.exit(ExitStatus.failure)
        }
    }

    private static func complain(_ text: String) {
        FileHandle.standardError.write(Data("roost: \(text)\n".utf8))
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
    /// The guest's kernel panicked, with `--on-panic exit-failure`.
    static let panic: Int32 = 96
    static let difference: Int32 = 88
    static let engine: Int32 = 90
    static let hypervisor: Int32 = 92

    static let machine: Int32 = 94

    var code: Int32
    var message: String?

    /// A status with words for the person at the terminal.
    init(code: Int32, message: String? = nil) {
        self.code = code
        self.message = message
    }

    /// What an error of Roost's own ends with; nil for others.
    init?(known error: any Error) {
        switch error {
        case let status as ExitStatus: self = status
        case let error as MachineError: self.init(code: Self.code(for: error), message: error.description)
        case let error as StorageError:
            self.init(code: error.code == .inUse ? Self.diskInUse : Self.disk, message: error.description)
        case let error as ImageError: self.init(code: Self.image, message: error.description)
        case let error as MachinesError:
            self.init(code: error.code == .badRequest ? Self.usage : Self.machine, message: error.description)
        case let failure as StartFailure: self.init(code: failure.status, message: failure.description)
        case let error as AgentError:
            // As a shell: there is no such program, or it can't be run.
            self.init(code: error.errno == 0 ? Self.machine : error.errno == 2 ? 127 : 126, message: error.description)
        case let error as HostError: self.init(code: Self.host, message: error.description)
        default: return nil
        }
    }

    /// How a run has ended.
    init(_ outcome: MachineOutcome) {
        switch outcome {
        case .poweredOff, .reset, .ended: self.init(code: 0)
        case .debugExit(let status): self.init(code: status)
        case .panicked: self.init(code: Self.panic, message: "the guest's kernel has panicked")
        case .tripleFault(let report): self.init(code: Self.tripleFault, message: report)
        case .difference(let report): self.init(code: Self.difference, message: report)
        case .engineFailed(let report): self.init(code: Self.engine, message: report)
        case .failed(let text): self.init(code: Self.failure, message: text)
        }
    }

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

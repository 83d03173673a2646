// `roost doctor`: what this host can do, on one page.
internal import ArgumentParser
internal import Foundation
internal import Machine

/// `roost doctor`.
struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Tell what this host can do for virtual machines, and what is missing.")

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        let report = HostReport()
        guard json else { return print(report.text) }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(report), as: UTF8.self))
    }
}

// `roost list` and `roost info`: which machines there are, and what one is.
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Machine
internal import Machines

/// `roost list`.
struct ListCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List the machines that are kept.", aliases: ["ls"])

    @OptionGroup var list: ListOptions

    @Flag(help: "Only those that run.")
    var running = false

    func run() throws {
        var listing = Listing(columns: ["name", "status", "image", "processors", "memory", "onDisk", "created"])
        for machine in MachineStore.standard.list() {
            let status = machine.status
            if running && status != .running && status != .paused { continue }
            // One that can't be read is listed all the same: it must be possible to delete it.
            let manifest = try? machine.manifest()
            listing.rows.append([
                .text(machine.name), .text(manifest == nil ? "damaged" : status.rawValue), .init(manifest?.image),
                .init(manifest.map { UInt64($0.machine.processors) }),
                manifest.map { .bytes($0.machine.wantedMemory ?? $0.machine.memory) } ?? .none,
                .bytes(UInt64(max(0, machine.bytesOnDisk))), .init(manifest?.created),
            ])
        }
        list.show(listing, ifEmpty: "No machines yet; `roost run -d debian` makes one.")
    }
}

/// `roost info`.
struct InfoCommand: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "info", abstract: "Tell what a machine is and does.")

    @OptionGroup var machine: MachineArgument

    @Flag(help: "Print JSON.")
    var json = false

    private struct Report: Encodable {
        var name: String
        var folder: String
        var status: MachineStatus
        var latestRun: RunRecord?
        var running: MachineReport?
        var addresses: [GuestAddress]?
        var manifest: MachineManifest
    }

    func run() throws {
        let stored = try machine.find()
        let control = stored.isRunning ? try? stored.control() : nil
        let report = Report(
            name: stored.name, folder: stored.folder, status: stored.status, latestRun: stored.latestRun,
            running: try? control?.call(MachineRequest.report, NoParameters(), returning: MachineReport.self),
            addresses: try? control?.call(
                MachineRequest.addresses, NoParameters(), returning: [GuestAddress].self),
            manifest: try stored.manifest())
        if json {
            print(String(decoding: try JSONText.pretty(report), as: UTF8.self), terminator: "")
        } else {
            for (label, text) in lines(report) {
                print(label.padding(toLength: 12, withPad: " ", startingAt: 0) + text)
            }
        }
    }

    private func lines(_ report: Report) -> [(String, String)] {
        let machine = report.manifest.machine
        var lines = [("name", report.name), ("status", report.status.rawValue)]
        if let run = report.latestRun {
            lines.append(("started", "\(run.started), process \(run.process)"))
            if let ended = run.ended { lines.append(("ended", "\(ended): \(run.outcome ?? "")")) }
        }
        if let running = report.running {
            if let usage = running.usage {
                lines.append(
                    (
                        "uses",
                        "\(Listing.short(usage.memory)) of the host's memory, "
                            + "\(usage.processorTime / 1_000_000_000) s of processor time"
                    ))
            }
        }
        for known in report.addresses ?? [] where !known.isLinkLocal {
            lines.append(("address", "\(known.address) (\(known.interface))"))
        }
        lines.append(("image", report.manifest.image ?? "none"))
        lines.append(("kernel", machine.boot.kernel))
        if let line = machine.boot.commandLine { lines.append(("arguments", line)) }
        lines.append(("processors", "\(machine.processors)"))
        lines.append(("memory", Listing.short(machine.wantedMemory ?? machine.memory)))
        if machine.balloon > 0 { lines.append(("balloon", Listing.short(machine.balloon))) }
        if let disks = report.running?.disks {
            for disk in disks { lines.append((disk.name, disk.path ?? "empty")) }
        } else {
            for disk in machine.disks { lines.append(("disk", disk.path)) }
            for path in machine.drives { lines.append(("cdrom", path ?? "empty")) }
        }
        for mount in machine.mounts ?? [] {
            lines.append(("mount", "\(mount.folder) at \(mount.path)\(mount.isReadOnly ? ", read-only" : "")"))
        }
        for network in machine.networks { lines.append(("network", network.inWords)) }
        lines.append(("folder", report.folder))
        lines.append(("id", report.manifest.id.uuidString.lowercased()))
        return lines
    }
}

extension NetworkConfiguration {
    /// As a person reads it.
    var inWords: String {
        let what =
            switch kind {
            case .user(let forwards): (["user"] + forwards.map(\.description)).joined(separator: ", ")
            case .passt(let forwards): (["passt"] + forwards.map(\.description)).joined(separator: ", ")
            case .tap(let interface, let bridge, let queues):
                "tap \(interface ?? "")\(bridge.map { " in bridge \($0)" } ?? "")"
                    + (queues > 1 ? ", \(queues) queues" : "")
            case .virtualSwitch(let name): "switch \(name)"
            case .vhostUser(let path, _): "vhost-user \(path)"
            }
        return what + (macAddressText.map { ", \($0)" } ?? "")
    }
}

// The requests that a running machine answers. One more is one more row of the table.
public import HostOS
public import Machine

/// What a running machine tells of itself.
public struct MachineReport: Codable, Sendable {
    /// What it is doing.
    public var state: MachineState
    /// Nanoseconds of the host's monotonic clock when this was taken.
    public var time: UInt64
    /// What its process uses.
    public var usage: ProcessUsage?
    /// What its devices have moved.
    public var traffic: TrafficCount
    /// Its disks and drives.
    public var disks: [DiskStatus]?
    /// Bytes of memory that the guest has.
    public var memory: UInt64?
    /// Bytes of memory given back to the host so far.
    public var returnedMemory: UInt64
}

/// A number of bytes.
public struct ByteCountParameters: Codable, Sendable {
    /// The bytes.
    public var bytes: UInt64

    /// A number of bytes.
    public init(bytes: UInt64) { self.bytes = bytes }
}

/// A number of things.
public struct CountParameters: Codable, Sendable {
    /// How many.
    public var count: Int

    /// A number.
    public init(count: Int) { self.count = count }
}

/// A name.
public struct NameParameters: Codable, Sendable {
    /// The name.
    public var name: String

    /// A name.
    public init(name: String) { self.name = name }
}

/// The verbs of a machine's control socket.
public enum MachineRequest {
    /// What it is doing: answers a `MachineReport`.
    public static let report = "report"
    /// Has the guest shut down: by its agent, or by the power button.
    public static let shutDown = "shut-down"
    /// The addresses of the guest's network interfaces: answers a list of `GuestAddress`.
    public static let addresses = "addresses"
    /// Stops the processors between two instructions.
    public static let pause = "pause"
    /// Lets them go on.
    public static let resume = "resume"
    /// Resets the guest.
    public static let reset = "reset"
    /// Ends the run at once, disks written.
    public static let end = "end"
    /// Has a machine that goes when it stops stay this time.
    public static let keep = "keep"
    /// Asks the guest to give back memory: `ByteCountParameters`.
    public static let balloon = "balloon"
    /// Gives the guest so many processors, or asks for some: `CountParameters`.
    public static let setProcessors = "set-processors"
    /// Asks the guest to have so much memory: `ByteCountParameters`.
    public static let setMemory = "set-memory"
    /// Connects a disk (`DiskConfiguration`); answers its name, `NameParameters`.
    public static let attachDisk = "attach-disk"
    /// Takes a disk or drive away: `DetachParameters`.
    public static let detachDisk = "detach-disk"
    /// Puts an image into a drive, or takes it out: `MediumParameters`.
    public static let changeMedium = "change-medium"
    /// Streams the console, from so many bytes back (`ByteCountParameters`); input goes to the guest.
    public static let console = "console"
    /// Forwards one more port of the host: `ForwardConfiguration`.
    public static let addForward = "add-forward"
    /// Forwards a port no more: `ForwardConfiguration`.
    public static let removeForward = "remove-forward"
    /// Changes limits on disks and network cards: `LimitChange`.
    public static let setLimits = "set-limits"
    /// Gives the guest a folder of the host's: `MountConfiguration`; answers a `MountAnswer`.
    public static let mount = "mount"
    /// Takes one from it: `UnmountParameters`.
    public static let unmount = "unmount"
    /// Takes a snapshot (`NameParameters`): streams its progress as JSON lines, `SnapshotNews`.
    public static let takeSnapshot = "take-snapshot"
    /// Deletes a snapshot (`NameParameters`): streams `SnapshotNews` of its end.
    public static let deleteSnapshot = "delete-snapshot"
    /// Streams what the agent in the guest says, and takes what it is told (AgentProtocol).
    public static let agent = "agent"
    /// Streams this run's events as JSON lines.
    public static let events = "events"

    /// What is done for each.
    static func handlers(
        _ machine: Machine, _ stored: StoredMachine, _ events: EventLog, _ refresh: GuestRefresh,
        note: @escaping @Sendable (MachineEvent) -> Void, keep: @escaping @Sendable () -> Void
    ) -> [String: ControlServer.Handler] {
        [
            report: { _ in
                .result(
                    MachineReport(
                        state: machine.state, time: HostClock.monotonic,
                        usage: ProcessUsage(of: DetachedProcess.ownNumber), traffic: machine.traffic,
                        disks: machine.disks, memory: machine.memorySize, returnedMemory: machine.returnedMemory))
            },
            shutDown: { _ in
                if try machine.shutDown() { events.note("shutDown") }
                return .done
            },
            addresses: { _ in .result(machine.guestAddresses) },
            pause: { _ in
                if machine.isPaused { return .done }
                try machine.pause()
                note(.paused)
                return .done
            },
            resume: { _ in
                if !machine.isPaused { return .done }
                try machine.resume()
                note(.resumed)
                return .done
            },
            reset: { _ in
                machine.reset()
                return .done
            },
            end: { _ in
                machine.end()
                return .done
            },
            self.keep: { _ in
                keep()
                return .done
            },
            balloon: { call in
                try stored.setBalloon(try call.parameters(ByteCountParameters.self).bytes, of: machine)
                return .done
            },
            setProcessors: { call in
                try stored.setProcessors(try call.parameters(CountParameters.self).count, of: machine)
                return .done
            },
            setMemory: { call in
                try stored.setMemory(try call.parameters(ByteCountParameters.self).bytes, of: machine)
                return .done
            },
            attachDisk: { call in
                .result(
                    NameParameters(
                        name: try stored.attach(try call.parameters(DiskConfiguration.self), to: machine)))
            },
            detachDisk: { call in
                let parameters = try call.parameters(DetachParameters.self)
                try stored.detach(parameters, from: machine)
                return .done
            },
            changeMedium: { call in
                try stored.changeMedium(try call.parameters(MediumParameters.self), of: machine)
                return .done
            },
            console: { call in
                let reader = try machine.console.history.follow(
                    from: Int(clamping: try call.parameters(ByteCountParameters.self).bytes))
                return .stream { connection in
                    ControlStream.pump(reader, to: connection) { machine.console.type($0) }
                }
            },
            addForward: { call in
                try stored.addForward(try call.parameters(ForwardConfiguration.self), to: machine)
                return .done
            },
            removeForward: { call in
                try stored.removeForward(try call.parameters(ForwardConfiguration.self), from: machine)
                return .done
            },
            setLimits: { call in
                try stored.setLimits(try call.parameters(LimitChange.self), of: machine)
                return .done
            },
            mount: { call in
                .result(
                    MountAnswer(isThere: try stored.mount(try call.parameters(MountConfiguration.self), in: machine)))
            },
            unmount: { call in
                try stored.unmount(try call.parameters(UnmountParameters.self), in: machine)
                return .done
            },
            takeSnapshot: { call in
                let name = try call.parameters(NameParameters.self).name
                return .stream { connection in SnapshotNews.take(name, machine, stored, events, connection) }
            },
            deleteSnapshot: { call in
                let name = try call.parameters(NameParameters.self).name
                return .stream { connection in SnapshotNews.delete(name, stored, connection) }
            },
            agent: { _ in
                refresh.wait()
                try machine.requireRunning()
                let stream = SharedDescriptor(try machine.connectAgent())
                return .stream { connection in
                    ControlStream.relay(stream, connection)
                    machine.sockets?.abandon(stream.descriptor)
                }
            },
            self.events: { _ in
                let reader = try events.lines.follow(from: .max)
                return .stream { ControlStream.pump(reader, to: $0, input: nil) }
            },
        ]
    }
}

// What looks after the guest: panics, the watchdog, the generation ID.
internal import DeviceModel
internal import Devices
internal import HostOS

/// What a panic of the guest's kernel does; it is told on standard error and as an event in any case, once until a reset.
public enum PanicAction: String, Sendable, CaseIterable, Codable {
    /// Nothing more.
    case none
    /// The machine is paused, for who wants to look.
    case pause
    /// The machine starts again.
    case reset
    /// The machine ends.
    case poweroff
    /// The machine ends, as a failure.
    case exitFailure = "exit-failure"
}

/// What the end of the guest's watchdog does; it is told on standard error and as an event in any case.
public enum WatchdogAction: String, Sendable, CaseIterable, Codable {
    /// The machine starts again.
    case reset
    /// The machine ends.
    case poweroff
    /// The machine is paused, for who wants to look.
    case pause
    /// Nothing more.
    case none
}

extension Board {
    /// Adds what a guest has to tell of its end.
    func connectGuards(
        _ configuration: MachineConfiguration, door: any Door, tell: @escaping @Sendable (MachineEvent) -> Void
    ) throws(MachineError) {
        let panic = PanicDevice { panic in
            Terminal.note(
                "roost: the guest's kernel has panicked\(panic == .crashKernel ? "; its crash kernel goes on" : "")")
            tell(panic == .crashKernel ? .crashKernel : .panicked)
        }
        try add(panic)
        guard let action = configuration.watchdog else { return }
        let watchdog = Watchdog(door: door) { isFirst in
            // A guest that sets it again and again doesn't fill the log.
            if isFirst { Terminal.note("roost: the guest's watchdog has expired: \(action.rawValue)") }
            tell(.watchdog)
        }
        try add(watchdog)
    }

    private func add(_ device: any PCIDevice) throws(MachineError) {
        guard bridge.add(device) != nil else {
            throw MachineError(.host, "more devices than the PCI bus has slots (31)")
        }
    }
}

extension Machine {
    /// Does what is wanted when the guest's kernel has panicked or its watchdog has expired.
    func react(to event: MachineEvent) {
        switch event {
        case .panicked:
            switch configuration.onPanic {
            case .none: break
            case .pause: pauseSoon()
            case .reset: processors[0].request(.reset)
            case .poweroff: processors[0].request(.powerOff)
            case .exitFailure: processors[0].request(.panic)
            }
        case .watchdog:
            switch configuration.watchdog {
            case .reset: processors[0].request(.reset)
            case .poweroff: processors[0].request(.powerOff)
            case .pause: pauseSoon()
            case .some(.none), nil: break
            }
        default: break
        }
    }

    /// Pauses on a thread of its own: this one may be what the pause waits for.
    private func pauseSoon() {
        try? HostThread.detached(name: "roost-pause") { [weak self] in
            guard let self, (try? pause()) != nil else { return }
            activity.note(.paused)
        }
    }
}

// Ports of the host that lead to a machine's: in its manifest, and while it runs in its network too.
internal import Foundation
public import Machine

extension StoredMachine {
    /// Forwards one more port, from now on and at each start.
    public func addForward(_ forward: ForwardConfiguration) throws {
        if isRunning {
            _ = try control().call(MachineRequest.addForward, forward) as NoParameters
            return
        }
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        try addForward(forward, to: nil)
    }

    /// Forwards a port no more; connections through it stay.
    public func removeForward(_ forward: ForwardConfiguration) throws {
        if isRunning {
            _ = try control().call(MachineRequest.removeForward, forward) as NoParameters
            return
        }
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        try removeForward(forward, from: nil)
    }

    /// The same in the process that has the machine.
    func addForward(_ forward: ForwardConfiguration, to running: Machine?) throws {
        try changeForwards { forwards, card in
            if forwards.contains(where: { $0.isUDP == forward.isUDP && $0.hostPort == forward.hostPort }) {
                throw MachinesError(.exists, "host port \(forward.hostPort) is forwarded already")
            }
            try running?.addForward(forward, card: card)
            forwards.append(forward)
        }
    }

    /// The same in the process that has the machine.
    func removeForward(_ forward: ForwardConfiguration, from running: Machine?) throws {
        try changeForwards { forwards, card in
            guard let index = forwards.firstIndex(of: forward) else {
                throw MachinesError(.notFound, "\(forward) is not forwarded")
            }
            try running?.removeForward(forward, card: card)
            forwards.remove(at: index)
        }
    }

    /// Changes the forwards of the first user-mode network; `body` gets the number of its card.
    private func changeForwards(_ body: (inout [ForwardConfiguration], Int) throws -> Void) throws {
        try edit { manifest in
            for index in manifest.machine.networks.indices {
                guard case .user(var forwards) = manifest.machine.networks[index].kind else { continue }
                try body(&forwards, index)
                manifest.machine.networks[index].kind = .user(forwards: forwards)
                return
            }
            throw MachinesError(.badRequest, "machine '\(name)' has no user-mode network")
        }
    }
}

// The socket device and what it leads to.
internal import DeviceModel
internal import Devices
internal import HostOS

extension Board {
    /// Makes the socket device of a configuration, if it has one.
    func connectSockets(
        _ configuration: MachineConfiguration, door: any Door
    ) throws(MachineError) -> VsockEndpoint? {
        guard let sockets = configuration.sockets else { return nil }
        do {
            let endpoint = try VsockEndpoint(path: sockets.path)
            let device = VirtioVsock(cid: sockets.cid, door: door, backend: endpoint)
            try add(device)
            try endpoint.start(device)
            return endpoint
        } catch let error as MachineError {
            throw error
        } catch { throw MachineError(.network, "sockets: \(error)") }
    }
}

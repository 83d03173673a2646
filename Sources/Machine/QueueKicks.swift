// Writes that only say "look at your queue", served by a thread of their own: the hypervisor signals an event counter
// instead of leaving the guest.
internal import DeviceModel
internal import HostOS
internal import KVM
internal import Synchronization

/// The notifications of one machine's devices while its vCPUs run under the hypervisor.
final class QueueKicks: Sendable {
    private struct Watch: Sendable {
        var device: any NotifiedDevice
        var start: UInt64
        var offset: UInt64
        var counter: SharedDescriptor
    }

    private struct Contents: Sendable {
        /// By token; zero is the one that stops the thread.
        var watches: [UInt64: Watch] = [:]
        var next: UInt64 = 1
    }

    private let machine: KVMMachine
    private let bus: Bus
    private let waiting: DescriptorSet
    private let stopping: SharedDescriptor
    private let contents = Mutex(Contents())
    private let thread = Mutex<HostThread?>(nil)

    /// Begins to serve the devices on a bus, and those that come and go.
    init(machine: KVMMachine, bus: Bus) throws(HostError) {
        self.machine = machine
        self.bus = bus
        waiting = try DescriptorSet()
        stopping = SharedDescriptor(try FileDescriptor.eventCounter())
        try waiting.add(stopping.descriptor, token: 0)
        let started = try HostThread(name: "roost-kicks") { [unowned self] in run() }
        thread.withLock { $0 = started }
        bus.observe { [weak self] device, start, isAttached in
            guard let device = device as? any NotifiedDevice else { return }
            if isAttached { self?.add(device, start) } else { self?.remove(start) }
        }
    }

    /// Ends serving; what was signaled so far has been served when this returns.
    func stop() {
        bus.observe(nil)
        let watches = contents.withLock { contents in
            defer { contents.watches = [:] }
            return contents.watches.values
        }
        for watch in watches { disconnect(watch) }
        stopping.descriptor.signal()
        thread.withLock { thread in
            thread?.join()
            thread = nil
        }
        // A notification without cause is allowed: what the thread didn't come to is done here.
        for watch in watches { watch.device.notify(offset: watch.offset) }
    }

    private func add(_ device: any NotifiedDevice, _ start: UInt64) {
        for offset in device.notificationOffsets {
            guard let counter = try? FileDescriptor.eventCounter() else { return }
            let watch = Watch(device: device, start: start, offset: offset, counter: SharedDescriptor(counter))
            let token = contents.withLock { contents in
                defer { contents.next += 1 }
                contents.watches[contents.next] = watch
                return contents.next
            }
            // Without a counter the write is an exit, and served as ever.
            do {
                try waiting.add(watch.counter.descriptor, token: token)
                try machine.signal(watch.counter.descriptor, onWriteTo: start &+ offset, isOn: true)
            } catch {
                contents.withLock { _ = $0.watches.removeValue(forKey: token) }
                waiting.remove(watch.counter.descriptor)
            }
        }
    }

    private func remove(_ start: UInt64) {
        let gone = contents.withLock { contents in
            let gone = contents.watches.filter { $0.value.start == start }
            for token in gone.keys { contents.watches.removeValue(forKey: token) }
            return gone.values
        }
        for watch in gone { disconnect(watch) }
    }

    private func disconnect(_ watch: Watch) {
        try? machine.signal(watch.counter.descriptor, onWriteTo: watch.start &+ watch.offset, isOn: false)
        waiting.remove(watch.counter.descriptor)
    }

    private func run() {
        while true {
            for (token, _) in waiting.wait() {
                if token == 0 { return }
                guard let watch = contents.withLock({ $0.watches[token] }) else { continue }
                watch.counter.descriptor.drain()
                watch.device.notify(offset: watch.offset)
            }
        }
    }
}

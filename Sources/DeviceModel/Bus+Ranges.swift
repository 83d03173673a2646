internal import Synchronization

/// The sorted ranges of a bus, behind one lock.
final class LockedState: Sendable {
    struct Range: Sendable {
        var start: UInt64
        var length: UInt64
        var device: any BusDevice
    }

    private let ranges = Mutex<[Range]>([])
    private let observer = Mutex<(@Sendable (any BusDevice, UInt64, Bool) -> Void)?>(nil)

    func observe(_ body: (@Sendable (any BusDevice, UInt64, Bool) -> Void)?) {
        observer.withLock { $0 = body }
        guard let body else { return }
        for range in ranges.withLock({ $0 }) { body(range.device, range.start, true) }
    }

    private func tell(_ device: any BusDevice, _ start: UInt64, _ isAttached: Bool) {
        if let body = observer.withLock({ $0 }) { body(device, start, isAttached) }
    }

    func attach(_ device: any BusDevice, _ start: UInt64, _ length: UInt64) -> Bool {
        guard length > 0, start <= UInt64.max - (length - 1) else { return false }
        let isNew = ranges.withLock { ranges in
            if ranges.contains(where: { start <= $0.start + ($0.length - 1) && $0.start <= start + (length - 1) }) {
                return false
            }
            let place = ranges.firstIndex { $0.start > start } ?? ranges.count
            ranges.insert(Range(start: start, length: length, device: device), at: place)
            return true
        }
        if isNew { tell(device, start, true) }
        return isNew
    }

    func removeAll() {
        observe(nil)
        // They go when the lock is free again.
        let gone = ranges.withLock { ranges in
            defer { ranges = [] }
            return ranges
        }
        _ = gone
    }

    func detach(_ start: UInt64) {
        let gone = ranges.withLock { ranges in
            let gone = ranges.filter { $0.start == start }
            ranges.removeAll { $0.start == start }
            return gone
        }
        for range in gone { tell(range.device, start, false) }
    }

    func find(_ address: UInt64, _ size: Int) -> (any BusDevice, UInt64)? {
        ranges.withLock { ranges in
            var low = 0
            var high = ranges.count
            while low < high {
                let middle = (low + high) / 2
                if ranges[middle].start <= address { low = middle + 1 } else { high = middle }
            }
            guard low > 0 else { return nil }
            let range = ranges[low - 1]
            let offset = address - range.start
            guard offset < range.length, UInt64(size) <= range.length - offset else { return nil }
            return (range.device, offset)
        }
    }
}

// What one run of a block stored, so that it can be undone and another run compared with it.
//
// Invariants: a record's window lies in one page of RAM; `old` and `made` hold the windows' bytes one after the other, in
// the order of the records.
internal import CHost
internal import Glibc

/// One store: its place, and the bytes around it that are compared.
struct StoreRecord {
    var physical: UInt64
    var size: Int
    var windowStart: UInt64
    var windowSize: Int
    /// Where the window's bytes are in the buffers.
    var offset: Int
}

/// A page whose code was written to, and which parts of it were decoded.
struct CodeRecord {
    var page: UInt64
    var chunks: UInt64
}

/// All stores of one run.
struct StoreLog {
    /// Bytes compared on either side of a store: an access that is too wide shows.
    private static let margin: UInt64 = 32

    private(set) var count = 0
    var code: [CodeRecord] = []
    private var capacity = 64
    private var stores: UnsafeMutablePointer<StoreRecord>
    private var used = 0
    private var room = 1 << 16
    /// The windows before each store, and after all of them.
    private var old: UnsafeMutablePointer<UInt8>
    private var made: UnsafeMutablePointer<UInt8>

    init() {
        stores = .allocate(capacity: capacity)
        old = .allocate(capacity: room)
        made = .allocate(capacity: room)
    }

    func deallocate() {
        stores.deallocate()
        old.deallocate()
        made.deallocate()
    }

    /// Forgets everything.
    @inline(__always)
    mutating func clear() {
        count = 0
        used = 0
        if !code.isEmpty { code.removeAll() }
    }

    /// Takes up what a store is about to change.
    mutating func add(_ ram: UnsafeMutablePointer<UInt8>, _ physical: UInt64, _ size: Int) {
        let page = physical & ~4095
        let start = max(page, physical &- min(physical, Self.margin))
        let end = min(page &+ 4096, physical &+ UInt64(size) &+ Self.margin)
        let length = Int(end &- start)
        if count == capacity || used + length > room { grow() }
        stores[count] = StoreRecord(
            physical: physical, size: size, windowStart: start, windowSize: length, offset: used)
        memcpy(old + used, ram + Int(start), length)
        count += 1
        used += length
    }

    /// Twice the room; a block stores a bounded amount.
    private mutating func grow() {
        let (oldStores, oldBytes) = (stores, old)
        stores = .allocate(capacity: capacity * 2)
        stores.update(from: oldStores, count: count)
        old = .allocate(capacity: room * 2)
        old.update(from: oldBytes, count: used)
        made.deallocate()
        made = .allocate(capacity: room * 2)
        oldStores.deallocate()
        oldBytes.deallocate()
        capacity *= 2
        room *= 2
    }

    /// Remembers what the run left in memory, then puts back what was there before.
    mutating func undo(_ ram: UnsafeMutablePointer<UInt8>) {
        for n in 0..<count {
            let store = stores[n]
            memcpy(made + store.offset, ram + Int(store.windowStart), store.windowSize)
        }
        restore(ram)
    }

    /// Puts back what was there before.
    func restore(_ ram: UnsafeMutablePointer<UInt8>) {
        for n in stride(from: count - 1, through: 0, by: -1) {
            let store = stores[n]
            let inside = store.offset + Int(store.physical &- store.windowStart)
            memcpy(ram + Int(store.physical), old + inside, store.size)
        }
    }

    /// Whether memory is as the run left it.
    func matches(_ ram: UnsafeMutablePointer<UInt8>) -> Bool {
        for n in 0..<count {
            let store = stores[n]
            if memcmp(ram + Int(store.windowStart), made + store.offset, store.windowSize) != 0 { return false }
        }
        return true
    }

    /// The bytes that are not as the run left them.
    func differences(_ ram: UnsafeMutablePointer<UInt8>) -> [LockstepDifference.Byte] {
        var result: [LockstepDifference.Byte] = []
        for n in 0..<count {
            let store = stores[n]
            for k in 0..<store.windowSize where ram[Int(store.windowStart) + k] != made[store.offset + k] {
                let address = store.windowStart &+ UInt64(k)
                if result.contains(where: { $0.address == address }) { continue }
                result.append(
                    .init(
                        address: address, interpreter: made[store.offset + k],
                        translator: ram[Int(store.windowStart) + k]))
                if result.count == 64 { return result }
            }
        }
        return result
    }
}

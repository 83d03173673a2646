// Tables of an image kept in memory, a bounded number of them.

/// Tables by their offset in the file; what has to be written back is marked. The clock algorithm chooses who goes.
struct TableCache<Element: Sendable>: Sendable {
    /// A table.
    struct Slot: Sendable {
        var offset: UInt64
        var entries: [Element]
        var dirty: Range<Int>?
        var isRecent = true
    }

    private(set) var slots: [Slot] = []
    private var places: [UInt64: Int] = [:]
    private var hand = 0
    let capacity: Int

    init(capacity: Int) { self.capacity = max(2, capacity) }

    /// The place of a table that is here.
    mutating func place(of offset: UInt64) -> Int? {
        guard let place = places[offset] else { return nil }
        slots[place].isRecent = true
        return place
    }

    /// Whether the next table will push out one that has to be written first.
    mutating func mustWriteFirst() -> Bool {
        guard slots.count >= capacity else { return false }
        while slots[hand].isRecent {
            slots[hand].isRecent = false
            hand = (hand + 1) % slots.count
        }
        return slots[hand].dirty != nil
    }

    /// Puts a table in; another goes if there is no room, which must not be dirty.
    mutating func insert(_ offset: UInt64, _ entries: [Element]) -> Int {
        if slots.count < capacity {
            slots.append(Slot(offset: offset, entries: entries))
            places[offset] = slots.count - 1
            return slots.count - 1
        }
        _ = mustWriteFirst()
        let place = hand
        precondition(slots[place].dirty == nil)
        places[slots[place].offset] = nil
        slots[place] = Slot(offset: offset, entries: entries)
        places[offset] = place
        hand = (hand + 1) % slots.count
        return place
    }

    /// Forgets a table whose cluster isn't one any more.
    mutating func remove(_ offset: UInt64) {
        guard let place = places.removeValue(forKey: offset) else { return }
        // Its place stays, under an offset that no table has, until it is taken.
        slots[place] = Slot(offset: ~UInt64(place), entries: [], dirty: nil, isRecent: false)
        places[~UInt64(place)] = place
    }

    /// Forgets everything.
    mutating func removeAll() {
        slots = []
        places = [:]
        hand = 0
    }

    subscript(place: Int, index: Int) -> Element {
        get { slots[place].entries[index] }
        set {
            slots[place].entries[index] = newValue
            let old = slots[place].dirty
            slots[place].dirty = min(old?.lowerBound ?? index, index)..<max(old?.upperBound ?? index + 1, index + 1)
        }
    }

    /// Marks a whole table as to be written.
    mutating func markDirty(_ place: Int) { slots[place].dirty = 0..<slots[place].entries.count }

    /// Says that a table is written.
    mutating func markClean(_ place: Int) { slots[place].dirty = nil }

    /// Tables to be written, in the order of the file.
    var dirtyPlaces: [Int] {
        slots.indices.filter { slots[$0].dirty != nil }.sorted { slots[$0].offset < slots[$1].offset }
    }
}

// Access by offset to memory that another process may write at the same time.
//
// Invariant: an offset and a length are checked against the span before the memory is touched, and what is read is copied
// once, so that nobody can change it after it was looked at.

extension SharedMemory {
    /// Where an offset is; a range outside the span is an error of ours, never of who shares the memory.
    private func place(_ offset: Int, _ length: Int) -> UnsafeMutableRawPointer {
        precondition(offset >= 0 && length >= 0 && offset <= span - length, "outside shared memory")
        return base + offset
    }

    /// Loads a value, aligned, in one piece.
    public func load<T: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, as type: T.Type) -> T {
        place(offset, MemoryLayout<T>.size).load(as: T.self)
    }

    /// Stores a value, aligned, in one piece.
    public func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at offset: Int) {
        place(offset, MemoryLayout<T>.size).storeBytes(of: value, as: T.self)
    }

    /// Copies bytes out.
    public func read(_ offset: Int, length: Int) -> [UInt8] {
        [UInt8](UnsafeRawBufferPointer(start: place(offset, length), count: length))
    }

    /// Copies bytes in.
    public func write(_ bytes: [UInt8], at offset: Int) {
        let target = place(offset, bytes.count)
        bytes.withUnsafeBytes {
            if let source = $0.baseAddress { target.copyMemory(from: source, byteCount: $0.count) }
        }
    }
}

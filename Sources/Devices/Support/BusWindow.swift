// What chips with scattered or byte-wide ports share.
public import DeviceModel

/// A window on a device: accesses arrive at `device` with `base` added to their offset.
///
/// A chip with ports in several places (8259: 0x20, 0xA0, 0x4D0) is attached once for each place through a window whose
/// base is the port number, so that the chip sees port numbers.
public final class BusWindow: BusDevice {
    private let device: any BusDevice
    private let base: UInt64

    /// A window on `device` that starts at offset `base` of it.
    public init(_ device: any BusDevice, base: UInt64) {
        self.device = device
        self.base = base
    }

    /// Reads through the window.
    public func read(offset: UInt64, size: Int) -> UInt64 { device.read(offset: base &+ offset, size: size) }

    /// Writes through the window.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        device.write(offset: base &+ offset, size: size, value: value)
    }
}

extension Bus {
    /// Attaches a device that thinks in absolute port numbers at each of `ranges`; false if any didn't fit.
    @discardableResult
    public func attachPorts(_ device: any BusDevice, _ ranges: [(start: UInt64, length: UInt64)]) -> Bool {
        var fits = true
        for range in ranges where !attach(BusWindow(device, base: range.start), at: range.start, length: range.length) {
            fits = false
        }
        return fits
    }
}

/// Splits a wide read of a byte-wide chip into bytes at consecutive offsets, as the ISA bridge does.
@inline(__always)
func readByteWise(_ offset: UInt64, _ size: Int, _ body: (UInt64) -> UInt8) -> UInt64 {
    if size == 1 { return UInt64(body(offset)) }
    var value: UInt64 = 0
    for index in 0..<UInt64(max(0, min(size, 8))) { value |= UInt64(body(offset &+ index)) &<< (index &* 8) }
    return value
}

/// Splits a wide write to a byte-wide chip into bytes at consecutive offsets.
@inline(__always)
func writeByteWise(_ offset: UInt64, _ size: Int, _ value: UInt64, _ body: (UInt64, UInt8) -> Void) {
    for index in 0..<UInt64(max(0, min(size, 8))) {
        body(offset &+ index, UInt8(truncatingIfNeeded: value &>> (index &* 8)))
    }
}

/// `a * b / c` in 128 bits, saturating; `c` is a constant of ours.
func scale(_ a: UInt64, by b: UInt64, over c: UInt64) -> UInt64 {
    let product = a.multipliedFullWidth(by: b)
    guard product.high < c else { return .max }
    return c.dividingFullWidth(product).quotient
}

/// The shortest period of a timer that interrupts: storms from shorter ones are coalesced to this.
///
/// - Quirk: real chips would interrupt more often than any guest can answer.
let shortestInterruptPeriod: UInt64 = 20_000

/// Checks a saved state's version.
func requireVersion(_ version: Int, _ expected: Int, _ name: String) throws {
    guard version == expected else { throw StateError("\(name): state version \(version), expected \(expected)") }
}

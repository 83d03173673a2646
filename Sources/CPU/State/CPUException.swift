// What interrupts an instruction: an architectural exception, or the need to leave the engine.

/// Why an instruction did not complete. Guest-visible; a value, never logged as an error.
///
/// - Spec: SDM 3A chapter 6, table 6-1.
public struct CPUException: Error, BitwiseCopyable, Equatable, Sendable {
    /// The vector, 0 to 31; 256 and above are the engine's own reasons (`exit`, `restart`).
    public var vector: UInt16
    /// Whether an error code is pushed.
    public var hasErrorCode: Bool
    /// The error code.
    public var errorCode: UInt32

    /// Makes an exception from its parts.
    @inline(__always)
    public init(_ vector: UInt16, errorCode: UInt32? = nil) {
        self.vector = vector
        hasErrorCode = errorCode != nil
        self.errorCode = errorCode ?? 0
    }

    /// #DE
    public static var divideError: Self { Self(0) }
    /// #DB; the caller has put the cause in `VCPU.s.pointee.pending_debug`.
    public static var debug: Self { Self(1) }
    /// #BP (a trap: RIP is the next instruction)
    public static var breakpoint: Self { Self(3) }
    /// #OF (a trap)
    public static var overflow: Self { Self(4) }
    /// #BR
    public static var boundRange: Self { Self(5) }
    /// #UD
    public static var invalidOpcode: Self { Self(6) }
    /// #NM
    public static var deviceNotAvailable: Self { Self(7) }
    /// #DF
    public static var doubleFault: Self { Self(8, errorCode: 0) }
    /// #TS
    public static func invalidTSS(_ code: UInt32) -> Self { Self(10, errorCode: code) }
    /// #NP
    public static func segmentNotPresent(_ code: UInt32) -> Self { Self(11, errorCode: code) }
    /// #SS
    public static func stackFault(_ code: UInt32) -> Self { Self(12, errorCode: code) }
    /// #GP
    public static func generalProtection(_ code: UInt32) -> Self { Self(13, errorCode: code) }
    /// #PF; CR2 is set by whoever throws it.
    public static func pageFault(_ code: UInt32) -> Self { Self(14, errorCode: code) }
    /// #MF
    public static var floatingPoint: Self { Self(16) }
    /// #AC
    public static var alignmentCheck: Self { Self(17, errorCode: 0) }
    /// #XM
    public static var simdFloatingPoint: Self { Self(19) }

    /// The engine must return a `VMExit`, described in the state block; the instruction runs again afterwards.
    public static var exit: Self { Self(256) }
    /// Stop the block and look at pending events; RIP stands where the guest goes on.
    public static var restart: Self { Self(257) }

    /// Whether this is an architectural exception.
    @inline(__always) public var isArchitectural: Bool { vector < 256 }
}

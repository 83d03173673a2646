// What is measured, and where.

/// A program of `bench`.
package struct GuestProgram: Codable, Equatable {
    package var name: String
    /// "compute" or "system".
    package var set: String
    /// What one of its operations is.
    package var unit: String

    package init(name: String, set: String, unit: String) {
        self.name = name
        self.set = set
        self.unit = unit
    }
}

/// Where programs run.
package enum System: String, Codable, CaseIterable {
    case native
    case roost
    case tcg

    package var title: String {
        switch self {
        case .native: "native"
        case .roost: "Roost"
        case .tcg: "QEMU TCG"
        }
    }
}

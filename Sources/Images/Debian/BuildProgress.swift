// How far a build is, read from what its tools print.
internal import Foundation

/// How far an image build is.
public struct BuildProgress: Sendable, Equatable {
    /// The parts of a build, in order.
    public enum Stage: Int, Sendable, CaseIterable {
        /// Package lists are read and packages fetched.
        case download
        /// Packages are unpacked and configured.
        case install
        /// The root file system is packed up.
        case pack
        /// The disk is made.
        case disk
        /// The kernel and initramfs are taken out.
        case kernel
        /// All is in place.
        case done

        /// In words.
        public var title: String {
            switch self {
            case .download: "downloading packages"
            case .install: "installing packages"
            case .pack: "packing the root file system"
            case .disk: "making the disk"
            case .kernel: "taking out the kernel"
            case .done: "done"
            }
        }
    }

    /// The part at work.
    public private(set) var stage = Stage.download
    /// The whole, in hundredths.
    public private(set) var percent = 0
    /// Seconds since the start.
    public private(set) var seconds = 0

    private let start = Date()
    /// Packages apt has said it will install; the second half of them is a guess until it says so.
    private var announced = 0
    private var announcements = 0
    private var fetched = 0
    private var unpacked = 0
    private var configured = 0

    init() {}

    mutating func enter(_ stage: Stage) {
        self.stage = stage
        estimate()
    }

    mutating func tick() { seconds = Int(Date().timeIntervalSince(start)) }

    /// Takes in one line of a tool's output; true if it changed the picture.
    mutating func read(_ line: String) -> Bool {
        let before = percent
        let beforeStage = stage
        if line.hasPrefix("Get:") {
            fetched += 1
        } else if line.hasPrefix("Unpacking ") {
            unpacked += 1
        } else if line.hasPrefix("Setting up ") {
            configured += 1
        } else if line.hasSuffix(" not upgraded."), let range = line.range(of: " upgraded, ") {
            announced += Int(line[range.upperBound...].prefix { $0.isNumber }) ?? 0
            announcements += 1
        } else if line.hasPrefix("I: extracting archives") {
            stage = .install
        } else if line.hasPrefix("I: creating tarball") {
            stage = .pack
        }
        tick()
        estimate()
        return percent != before || stage != beforeStage
    }

    private mutating func estimate() {
        let total = max(1, announcements < 2 ? max(announced * 2, 120) : announced)
        func part(_ count: Int) -> Int { min(count, total) * 100 / total }
        let now =
            switch stage {
            case .download, .install: (part(fetched) * 20 + part(unpacked) * 35 + part(configured) * 30) / 100
            case .pack: 85
            case .disk: 90
            case .kernel: 98
            case .done: 100
            }
        percent = max(percent, now)
    }
}

// Every instruction form on the interpreter and on the host's own processor, from the same random state: registers,
// flags, vector and x87 state, memory, and the exception if there is one, compared bit by bit.
import CPU
import Foundation
import Testing

@Suite(.serialized) struct DifferentialTests {
    /// Cases a form and mode in the bounded run; the environment says more (`make fuzz`).
    static var rounds: Int { ProcessInfo.processInfo.environment["ROOST_FUZZ_ROUNDS"].flatMap(Int.init) ?? 100 }
    static var seed: UInt64 { ProcessInfo.processInfo.environment["ROOST_FUZZ_SEED"].flatMap(UInt64.init) ?? 1 }

    @Test(arguments: [false, true]) func everyFormAgreesWithTheHost(translates: Bool) throws {
        let tester = try #require(DifferentialTester(translates: translates))
        for compatibility in [false, true] where !compatibility || tester.hasCompatibility {
            for number in 0..<InstructionTable.count {
                tester.run(form: UInt16(number), rounds: Self.rounds, seed: Self.seed, compatibility: compatibility)
            }
        }
        let report = tester.report
        #expect(report.failures.isEmpty, "\(report.text)")
        print("differential: \(report.cases) cases, \(report.forms) forms, \(report.operations) operations")
        #expect(report.cases >= 200_000)
    }
}

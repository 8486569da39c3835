//! Every rule, on records made up to fall on either side of it.

use ternbench_measure::Record;
use ternbench_measure::record::{Accuracy, Agreement, Body, Load, Memory, Speed, TritCount, Verify};
use ternbench_measure::stats::Estimate;

use super::judge;
use super::test_records::{code, model, records, records_on, speed};
use crate::ledger::{Row, Verdict};
use crate::pairing::{PairedMetric, Pairing};
use crate::run::Run;

const TERNARY: &str = "synthetic:bitnet-2b4t";
const BASELINES: [&str; 5] = ["llama-3.2-1b", "gemma-3-1b", "qwen2.5-1.5b", "smollm2-1.7b", "minicpm-2b"];

fn row(records: &[Record], id: &str) -> Row {
    let ledger = judge(&Run { records: records.to_vec(), ..Run::default() });
    ledger.rows.into_iter().find(|row| row.id == id).expect("the claim is in the catalogue")
}

fn verdict(records: &[Record], id: &str) -> Verdict {
    row(records, id).finding.verdict
}

/// The ternary model beside each baseline, so many times as fast, with 1 % of noise common to a round.
fn race(ratios: &[f64]) -> Vec<Body> {
    let noise = [1.0, 1.01, 0.99, 1.02, 0.98];
    let at = |base: f64| noise.map(|noise| base * noise);
    let pair = |(baseline, ratio): (&&str, &f64)| -> [Body; 2] {
        let name = format!("synthetic:{baseline}");
        [
            speed(TERNARY, "ternary", 2, baseline, &at(10.0 * ratio)).into(),
            speed(&name, "f16", 2, baseline, &at(10.0)).into(),
        ]
    };
    BASELINES.iter().zip(ratios).flat_map(pair).collect()
}

#[test]
fn nothing_measured_names_the_commands() {
    let ledger = judge(&Run::default());
    for row in &ledger.rows {
        let formula = row.id == "energy-028j (formula)";
        assert_eq!(row.finding.verdict == Verdict::NotMeasured, !formula, "{row:?}");
        assert_eq!(row.command.is_some(), !formula, "{row:?}");
        assert!(!row.finding.reason.is_empty());
    }
    assert_eq!(
        ledger.summary(),
        format!(
            "1 reproduced, 0 not reproduced, 0 undecided, 0 not comparable, {} not measured",
            ledger.rows.len() - 1
        )
    );
    assert!(ledger.all_judged_hold());
}

#[test]
fn twice_as_fast_is_judged_by_the_geometric_mean() {
    let fast = row(&records(race(&[2.5, 2.5, 1.9, 3.0, 4.0])), "twice-as-fast");
    assert_eq!(fast.finding.verdict, Verdict::Reproduced);
    assert!(
        fast.finding.reason.contains("5 of 5 baselines (tg128, 2 threads, avx2-i2s-maddubs); 4 of 5 reach 2x alone"),
        "{}",
        fast.finding.reason
    );
    assert_eq!(verdict(&records(race(&[1.5, 1.5, 1.5, 1.5, 2.5])), "twice-as-fast"), Verdict::NotReproduced);
    assert_eq!(verdict(&records(race(&[2.5])), "twice-as-fast"), Verdict::Reproduced);
    assert_eq!(verdict(&records(race(&[])), "twice-as-fast"), Verdict::NotMeasured);
}

#[test]
fn an_interval_across_the_claim_is_undecided() {
    let noisy: Vec<Body> = vec![
        speed(TERNARY, "ternary", 2, "g", &[15.0, 20.0, 25.0, 19.0, 22.0]).into(),
        speed("synthetic:llama-3.2-1b", "f16", 2, "g", &[10.0; 5]).into(),
    ];
    let found = row(&records(noisy), "twice-as-fast");
    assert_eq!(found.finding.verdict, Verdict::Undecided);
    assert!(found.finding.reason.starts_with("the interval straddles the claim, closer"), "{found:?}");
    // 1.9 (1.5 to 2.3) of 5 rounds: the distance to 2 is a quarter of the half interval, so 16 times the rounds, and a third more.
    let nearer: Vec<Body> = vec![
        speed(TERNARY, "ternary", 2, "g", &[15.0, 18.0, 23.0, 19.0, 22.0]).into(),
        speed("synthetic:llama-3.2-1b", "f16", 2, "g", &[10.0; 5]).into(),
    ];
    let found = row(&records(nearer), "twice-as-fast");
    assert_eq!(found.advice(), ". To decide: `ternbench claims -r 107`");
}

#[test]
fn refused_lossy_and_other_threads_do_not_count() {
    let mut refused = speed(TERNARY, "ternary", 2, "g", &[100.0; 5]);
    refused.refused = Some("impossible".into());
    let mut lossy = speed(TERNARY, "ternary", 2, "g", &[90.0; 5]);
    lossy.code.exact = false;
    let honest = speed(TERNARY, "ternary", 2, "g", &[12.0; 5]);
    let one_thread = speed(TERNARY, "ternary", 1, "g", &[80.0; 5]);
    let baseline = speed("synthetic:llama-3.2-1b", "f16", 2, "g", &[10.0; 5]);
    let found = row(
        &records([refused.into(), lossy.into(), honest.into(), one_thread.into(), baseline.into()]),
        "twice-as-fast",
    );
    assert_eq!(found.finding.verdict, Verdict::NotReproduced);
    assert!(found.finding.measured.starts_with("1.20x"), "{found:?}");
}

#[test]
fn pairs_of_other_groups_are_marked() {
    let bodies: Vec<Body> = vec![
        speed(TERNARY, "ternary", 2, "a", &[30.0; 5]).into(),
        speed("synthetic:llama-3.2-1b", "f16", 2, "b", &[10.0; 5]).into(),
    ];
    assert!(row(&records(bodies), "twice-as-fast").finding.reason.contains("unpaired"));
}

#[test]
fn published_latency_ratios_hold_with_their_rounding() {
    // 48/29, 41/29, 65/29, 67/29, 124/29.
    let published = [1.655, 1.414, 2.241, 2.310, 4.276];
    assert_eq!(verdict(&records(race(&published)), "latency-29ms (ratios)"), Verdict::Reproduced);
    assert_eq!(
        verdict(&records(race(&published.map(|ratio| ratio * 0.9))), "latency-29ms (ratios)"),
        Verdict::NotReproduced
    );
}

#[test]
fn absolute_latency_holds_only_on_its_cpu() {
    let here = || speed(TERNARY, "ternary", 8, "g", &[35.0; 5]);
    assert_eq!(verdict(&records([here().into()]), "latency-29ms"), Verdict::NotComparable);
    let there = |body: Speed| records_on("13th Gen Intel(R) Core(TM) i7-13800H", "x86_64", [body.into()]);
    assert_eq!(verdict(&there(here()), "latency-29ms"), Verdict::Reproduced);
    assert_eq!(verdict(&there(speed(TERNARY, "ternary", 8, "g", &[20.0; 5])), "latency-29ms"), Verdict::NotReproduced);
    assert_eq!(verdict(&there(speed(TERNARY, "ternary", 2, "g", &[35.0; 5])), "latency-29ms"), Verdict::NotComparable);
}

#[test]
fn range_and_up_to_claims() {
    let same_shape = |ratio: f64| -> [Body; 2] {
        [
            speed(TERNARY, "ternary", 2, "g", &[4.0 * ratio; 5]).into(),
            speed("synthetic:bitnet-2b4t-f16", "f16", 2, "g", &[4.0; 5]).into(),
        ]
    };
    assert_eq!(verdict(&records(same_shape(3.0)), "x86-2.37-6.17"), Verdict::Reproduced);
    let above = row(&records(same_shape(7.0)), "x86-2.37-6.17");
    assert!(above.finding.verdict == Verdict::Reproduced && above.finding.reason.starts_with("above"), "{above:?}");
    assert_eq!(verdict(&records(same_shape(2.0)), "x86-2.37-6.17"), Verdict::NotReproduced);
    assert_eq!(verdict(&records(same_shape(3.0)), "arm-1.37-5.07"), Verdict::NotComparable);
    assert_eq!(verdict(&records_on("Arm", "aarch64", same_shape(3.0)), "arm-1.37-5.07"), Verdict::Reproduced);
    assert_eq!(verdict(&records(same_shape(3.0)), "i2s-6.25 (I2_S)"), Verdict::NotComparable);
    assert_eq!(verdict(&records(same_shape(6.5)), "i2s-6.25 (I2_S)"), Verdict::Reproduced);
}

/// Kernels are compared with each other on the whole model, or else on some of its layers, never across the two.
#[test]
fn kernels_may_be_compared_on_a_slice_of_the_model() {
    let run = |model: &str, kernel: &str, rate: f64| -> Body {
        let speed = speed(model, "ternary", 2, "g", &[rate; 5]);
        let code = ternbench_measure::record::Code { kernel: kernel.into(), ..speed.code.clone() };
        Speed { code, ..speed }.into()
    };
    let slice = "synthetic:bitnet-2b4t-4layer";
    let (tl2, bitplane) = ("avx2-tl2-pshufb", "avx2-bitplane-pshufb");
    let claim = "i2s-6.25 (TL2 / T-MAC)";
    let finding = |bodies: Vec<Body>| row(&records(bodies), claim).finding;
    let on_slice = finding(vec![run(slice, tl2, 30.0), run(slice, bitplane, 10.0)]);
    assert_eq!((on_slice.verdict, &*on_slice.measured), (Verdict::Reproduced, "3.00x (3.00 to 3.00)"));
    assert!(on_slice.reason.ends_with(slice), "{}", on_slice.reason);
    assert_eq!(finding(vec![run(slice, tl2, 30.0), run(TERNARY, bitplane, 10.0)]).verdict, Verdict::NotMeasured);
    let whole =
        vec![run(slice, tl2, 30.0), run(slice, bitplane, 10.0), run(TERNARY, tl2, 5.0), run(TERNARY, bitplane, 5.0)];
    assert_eq!(finding(whole).verdict, Verdict::NotComparable);
}

#[test]
fn memory_rows_are_judged_by_peak_and_by_packed_bytes() {
    let memory = |name: &str, weights: &str, packed: u64, peak: u64| -> Body {
        Memory {
            model: model(name, weights),
            kernel: "k".into(),
            packed_bytes: packed,
            n_params_linear: 2_084_044_800,
            peak_rss_bytes: peak,
            ..Memory::default()
        }
        .into()
    };
    let with = |packed, peak| {
        records([
            memory(TERNARY, "ternary", packed, peak),
            memory("synthetic:llama-3.2-1b", "f16", 1_946_157_056, 2_500_000_000),
        ])
    };
    assert_eq!(verdict(&with(521_000_000, 1_300_000_000), "less-memory"), Verdict::Reproduced);
    assert_eq!(verdict(&with(521_000_000, 2_600_000_000), "less-memory"), Verdict::NotReproduced);
    let i2s = row(&with(521_000_000, 1_300_000_000), "less-memory (0.4 GB)");
    assert_eq!(i2s.finding.verdict, Verdict::NotReproduced);
    assert!(i2s.finding.reason.contains("2.00 bits a weight") && i2s.finding.reason.contains("0.41 GB"), "{i2s:?}");
    assert_eq!(verdict(&with(417_000_000, 1_300_000_000), "less-memory (0.4 GB)"), Verdict::Reproduced);
}

#[test]
fn lossless_needs_sums_and_tokens() {
    let verify = |ok| -> Body {
        Verify { code: code("ternary"), layout: "i2s".into(), cases: 100, ok, ..Verify::default() }.into()
    };
    let agree = |n_differ| -> Body {
        Agreement {
            model: model(TERNARY, "ternary"),
            code: code("ternary"),
            layout: "i2s".into(),
            n_tokens: 64,
            n_differ,
            ..Agreement::default()
        }
        .into()
    };
    assert_eq!(verdict(&records([verify(true), agree(0)]), "lossless (I2_S)"), Verdict::Reproduced);
    assert_eq!(verdict(&records([verify(true)]), "lossless (I2_S)"), Verdict::NotMeasured);
    assert_eq!(verdict(&records([verify(true), agree(1)]), "lossless (I2_S)"), Verdict::NotReproduced);
    assert_eq!(verdict(&records([verify(false), agree(0)]), "lossless (I2_S)"), Verdict::NotReproduced);
    assert_eq!(verdict(&records([verify(true), agree(0)]), "lossless (TL1)"), Verdict::NotMeasured);
}

#[test]
fn counts_are_judged_and_synthetic_trits_are_not() {
    let load = |name: &str, other| -> Body {
        let trits = Some(TritCount { minus: 5, zero: 6, plus: 5, other });
        let mut load = Load {
            model: model(name, "ternary"),
            n_params_linear: 2_084_044_800,
            n_params: 2_412_380_160,
            trits,
            ..Load::default()
        };
        load.model.shape = Some("bitnet-2b4t".into());
        load.into()
    };
    assert_eq!(verdict(&records([load(TERNARY, 0)]), "params-2b"), Verdict::Reproduced);
    assert_eq!(verdict(&records([load(TERNARY, 0)]), "weights-ternary"), Verdict::NotMeasured);
    assert_eq!(verdict(&records([load("ggml-model-i2_s.gguf", 0)]), "weights-ternary"), Verdict::Reproduced);
    let mut other = Load { model: model("tiny.gguf", "ternary"), trits: Some(TritCount::default()), ..Load::default() };
    other.model.shape = None;
    let found = row(&records([load(TERNARY, 0), other.into()]), "weights-ternary");
    assert!(found.finding.reason.contains("tiny.gguf has another shape"), "{found:?}");
    assert_eq!(verdict(&records([load("ggml-model-i2_s.gguf", 1)]), "weights-ternary"), Verdict::NotReproduced);
}

#[test]
fn accuracy_counts_on_real_weights_and_the_whole_set() {
    let score = |shape: &str, correct: u64, n: u64, prefix: &str| -> Body {
        let mut accuracy = Accuracy {
            model: model(&format!("{prefix}{shape}"), "f16"),
            task: "piqa@1".into(),
            n,
            n_total: 1838,
            ..Accuracy::default()
        };
        accuracy.model.shape = Some(shape.into());
        accuracy.correct.insert("acc_norm".into(), correct);
        accuracy.into()
    };
    let all = |own: u64, others: u64, n: u64, prefix: &str| {
        let others = BASELINES[..3].iter().map(|shape| score(shape, others, n, prefix));
        records(others.chain([score("bitnet-2b4t", own, n, prefix)]))
    };
    assert_eq!(verdict(&all(1500, 1300, 1838, ""), "piqa-beats-1b"), Verdict::Reproduced);
    assert_eq!(verdict(&all(1300, 1500, 1838, ""), "piqa-beats-1b"), Verdict::NotReproduced);
    let close = row(&all(1417, 1399, 1838, ""), "piqa-beats-1b");
    assert!(
        close.finding.verdict == Verdict::Undecided && close.finding.reason.starts_with("a lead's interval holds 0"),
        "{close:?}"
    );
    assert_eq!(verdict(&all(90, 10, 100, ""), "piqa-beats-1b"), Verdict::NotMeasured);
    assert_eq!(verdict(&all(1500, 1300, 1838, "synthetic:"), "piqa-beats-1b"), Verdict::NotMeasured);
}

#[test]
fn a_lead_that_is_paired_by_items_is_judged_by_the_pairs() {
    let score = |shape: &str, correct: u64| -> Body {
        let mut accuracy = Accuracy {
            model: model(shape, "f16"),
            task: "piqa@1".into(),
            n: 1838,
            n_total: 1838,
            ..Accuracy::default()
        };
        accuracy.model.shape = Some(shape.into());
        accuracy.correct.insert("acc_norm".into(), correct);
        accuracy.into()
    };
    let others = BASELINES[..3].iter().map(|shape| score(shape, 1399));
    let records = records(std::iter::once(score("bitnet-2b4t", 1417)).chain(others));
    let finding = |pairings| {
        let run = Run { records: records.clone(), pairings, ..Run::default() };
        judge(&run).rows.into_iter().find(|row| row.id == "piqa-beats-1b").expect("a row").finding
    };
    let alone = finding(Vec::new());
    assert!(alone.verdict == Verdict::Undecided && alone.reason.contains("unpaired"), "{alone:?}");
    // The same 18 items, but no item is lost: the pairs are sure of what the shares are not. The second pair stands the other way round.
    let lead = |sign: f64| {
        let ends = if sign > 0.0 { [0.005, 0.014] } else { [-0.014, -0.005] };
        PairedMetric {
            metric: "acc_norm".into(),
            only_first: 18,
            only_second: 0,
            lead: Estimate { value: sign * 18.0 / 1838.0, low: ends[0], high: ends[1], n: 1838 },
            p: 7.6e-6,
        }
    };
    let pairing = |first, second, sign| Pairing { task: "piqa@1".into(), first, second, outcome: Ok(vec![lead(sign)]) };
    let paired = finding(vec![pairing(0, 1, 1.0), pairing(2, 0, -1.0), pairing(0, 3, 1.0)]);
    assert_eq!(paired.verdict, Verdict::Reproduced, "{paired:?}");
    assert_eq!(paired.reason.matches("+1.0 (+0.5 to +1.4, McNemar p 0.0000)").count(), 3, "{paired:?}");
}

#[test]
fn perplexity_allows_both_errors() {
    let with = |perplexity: f64| {
        let n = 250_000_u64;
        let mean = perplexity.ln();
        let mut accuracy =
            Accuracy { model: model("m.gguf", "ternary"), task: "wikitext@1".into(), n, ..Accuracy::default() };
        accuracy.model.shape = Some("bitnet-2b4t".into());
        accuracy.nll_sum = Some(mean * n as f64);
        accuracy.nll_square_sum = Some((mean * mean + 9.0) * n as f64);
        records([accuracy.into()])
    };
    assert_eq!(verdict(&with(17.2), "ppl-17.109"), Verdict::Reproduced);
    assert_eq!(verdict(&with(18.0), "ppl-17.109"), Verdict::NotReproduced);
}

#[test]
fn measured_joules_stand_beside_the_formula() {
    let mut decode = speed(TERNARY, "ternary", 2, "g", &[10.0; 3]);
    decode.energy = Some("not measured: no counter".into());
    let found = row(&records([decode.clone().into()]), "energy-028j (measured)");
    assert_eq!(
        (found.finding.verdict, found.finding.reason.as_str()),
        (Verdict::NotMeasured, "not measured: no counter")
    );
    decode.samples_joules = vec![128.0, 192.0, 256.0];
    let found = row(&records([decode.into()]), "energy-028j (measured)");
    assert_eq!(found.finding.verdict, Verdict::NotComparable);
    assert_eq!(found.finding.measured, "1.500 J a token (1.000 to 2.000)");
}

#[test]
fn where_it_runs() {
    let verify = |isa: &str| -> Body {
        let mut verify = Verify { code: code("ternary"), layout: "i2s".into(), ok: true, ..Verify::default() };
        verify.code.isa = isa.into();
        verify.into()
    };
    assert_eq!(verdict(&records([verify("avx2")]), "runs-on-arm"), Verdict::NotMeasured);
    assert_eq!(verdict(&records_on("Cortex", "aarch64", [verify("neon")]), "runs-on-arm"), Verdict::Reproduced);
    assert_eq!(verdict(&records(race(&[2.0])), "only-bitnet-cpp"), Verdict::NotReproduced);
}

#[test]
fn speeds_that_claims_are_not_of_are_no_evidence() {
    let speed = || speed("synthetic:a", "ternary", 2, "g1", &[10.0]);
    let (mut rounded, mut together) = (speed(), speed());
    rounded.kv = "int8".into();
    together.n_parallel = 8;
    let run = Run { records: records([speed().into(), rounded.into(), together.into()]), ..Run::default() };
    assert_eq!(super::evidence::Evidence::new(&run).speeds.len(), 1);
}

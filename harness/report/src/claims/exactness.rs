//! Rules about being exact, and about what runs where.

use super::evidence::{Evidence, layout_of};
use crate::catalogue::Catalogue;
use crate::ledger::{Finding, Verdict};

/// "Every weight of the linear layers is -1, 0 or 1."
pub(super) fn weights_ternary(evidence: &Evidence<'_>, catalogue: &Catalogue) -> Finding {
    let subject = |load: &&&ternbench_measure::record::Load| load.model.shape() == Some(&catalogue.subject().id);
    let real = evidence.loads.iter().filter(subject).find(|load| !load.model.is_synthetic());
    let Some((load, trits)) = real.and_then(|load| Some((load, load.trits?))) else {
        return Finding::not_measured(why_no_real_weights(evidence, catalogue));
    };
    let all = trits.minus + trits.zero + trits.plus + trits.other;
    let share = |count: u64| count as f64 * 100.0 / all.max(1) as f64;
    let verdict = if trits.other == 0 && all > 0 { Verdict::Reproduced } else { Verdict::NotReproduced };
    let reason = format!(
        "{all} weights of {}: {:.1} % are -1, {:.1} % 0, {:.1} % +1",
        load.model.model,
        share(trits.minus),
        share(trits.zero),
        share(trits.plus)
    );
    Finding::new(verdict, format!("{} others", trits.other), reason)
}

/// What was loaded instead of a file of the subject's shape.
fn why_no_real_weights(evidence: &Evidence<'_>, catalogue: &Catalogue) -> String {
    let subject = catalogue.subject();
    let others = evidence.loads.iter().filter(|load| !load.model.is_synthetic() && load.trits.is_some());
    let others: std::collections::BTreeSet<&str> = others.map(|load| load.model.model.as_str()).collect();
    if !others.is_empty() {
        let names = others.into_iter().collect::<Vec<_>>().join(", ");
        return format!("no file of {}'s shape was loaded; {names} has another shape", subject.title);
    }
    match evidence.loads.iter().any(|load| load.model.weights == "ternary") {
        true => "only synthetic weights were loaded, which are ternary by construction".into(),
        false => "no ternary weights were loaded".into(),
    }
}

/// "I2_S is lossless."
pub(super) fn lossless(evidence: &Evidence<'_>, layout: &str) -> Finding {
    let verifies: Vec<_> = evidence
        .verifies
        .iter()
        .map(|(_, verify)| verify)
        .filter(|v| v.layout == layout && v.code.exact && v.skipped.is_none())
        .collect();
    if verifies.is_empty() {
        return Finding::not_measured(format!("no exact {layout} kernel was verified here"));
    }
    let agreements: Vec<_> =
        evidence.agreements.iter().filter(|agreement| agreement.layout == layout && agreement.code.exact).collect();
    let (cases, tokens): (u64, u64) =
        (verifies.iter().map(|v| v.cases).sum(), agreements.iter().map(|a| a.n_tokens).sum());
    let differ: u64 = agreements.iter().map(|agreement| agreement.n_differ).sum();
    let kernels = verifies.iter().map(|v| v.code.kernel.as_str()).collect::<std::collections::BTreeSet<_>>();
    let kernels = kernels.into_iter().collect::<Vec<_>>().join(", ");
    if let Some(wrong) = verifies.iter().find(|verify| !verify.ok) {
        let mismatch = wrong.first_mismatch.as_deref().unwrap_or("a sum differs from the oracle's");
        return Finding::new(Verdict::NotReproduced, "wrong sums", format!("{}: {mismatch}", wrong.code.kernel));
    }
    let measured = format!("{cases} cases equal, {differ} of {tokens} tokens differ");
    if differ > 0 {
        return Finding::new(
            Verdict::NotReproduced,
            measured,
            format!("greedy tokens differ from the oracle kernel's: {kernels}"),
        );
    }
    if tokens == 0 {
        let reason = format!("sums are equal ({kernels}), but no greedy tokens were compared");
        return Finding::new(Verdict::NotMeasured, format!("{cases} cases equal"), reason);
    }
    Finding::new(Verdict::Reproduced, measured, format!("against the oracle: {kernels}"))
}

/// "Needs bitnet.cpp and runs on certain hardware only": refuted by running here.
pub(super) fn runs_without_bitnet_cpp(evidence: &Evidence<'_>, catalogue: &Catalogue) -> Finding {
    let subject = evidence
        .speeds
        .iter()
        .find(|(_, speed)| speed.model.shape() == Some(&catalogue.subject().id) && speed.model.weights == "ternary");
    let Some((record, speed)) = subject else {
        return Finding::not_measured("the ternary model was not run");
    };
    let portable = if evidence.verifies.iter().any(|(_, v)| v.ok && v.code.isa == "scalar") {
        "; a portable kernel was verified too"
    } else {
        ""
    };
    let reason = format!("ternbench ran it on {} with {}{portable}", record.cpu, speed.code.kernel);
    Finding::new(Verdict::NotReproduced, "runs without it", reason)
}

/// "Runs on CPUs including Apple's M2."
pub(super) fn runs_on_arm(evidence: &Evidence<'_>) -> Finding {
    let on_arm = |native: bool| {
        let fits = move |(record, verify): &&(&ternbench_measure::Record, &ternbench_measure::record::Verify)| {
            record.arch == "aarch64" && verify.skipped.is_none() && (verify.code.isa != "scalar") == native
        };
        evidence.verifies.iter().filter(fits).collect::<Vec<_>>()
    };
    let kernels = on_arm(true);
    if kernels.is_empty() {
        return Finding::not_measured("no ARM kernel was verified: none of these records were made on aarch64");
    }
    let names = kernels.iter().map(|(_, v)| layout_of(&v.code.kernel)).collect::<std::collections::BTreeSet<_>>();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    if let Some((_, wrong)) = kernels.iter().find(|(_, verify)| !verify.ok) {
        return Finding::new(
            Verdict::NotReproduced,
            "wrong sums",
            format!("{} differs from the oracle", wrong.code.kernel),
        );
    }
    let reason = format!("on {}, layouts {names}; an Apple M2 itself only if the CPU says so", kernels[0].0.cpu);
    Finding::new(Verdict::Reproduced, format!("{} kernels exact", kernels.len()), reason)
}

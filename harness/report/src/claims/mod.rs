//! Judging: each rule of the catalogue looks at the records and finds a verdict. The rules in words: METHODOLOGY.md.

mod accuracy;
mod evidence;
mod exactness;
mod memory;
mod speed;

use ternbench_measure::record::Speed;
use ternbench_measure::stats;

use crate::catalogue::{Catalogue, Claim, Rule};
use crate::energy::energy;
use crate::ledger::{Finding, Ledger, Row, Verdict};
use crate::run::Run;
pub use evidence::{Comparison, Evidence, layout_of};

/// Judges every claim of the catalogue by a run's records.
pub fn judge(run: &Run) -> Ledger {
    let catalogue = Catalogue::get();
    let evidence = Evidence::new(run);
    let rows = catalogue.claims.iter().map(|claim| row(claim, find(&claim.rule, &evidence, catalogue))).collect();
    Ledger { rows }
}

fn row(claim: &Claim, finding: Finding) -> Row {
    Row {
        id: claim.full_id(),
        claim: claim.text.clone(),
        sources: claim.sources.clone(),
        conditions: claim.conditions.clone(),
        published: claim.published.clone(),
        command: matches!(finding.verdict, Verdict::NotMeasured | Verdict::Undecided)
            .then(|| finding.decide.clone().unwrap_or_else(|| claim.command.clone())),
        note: claim.note.clone(),
        finding,
    }
}

fn find(rule: &Rule, evidence: &Evidence<'_>, catalogue: &Catalogue) -> Finding {
    match rule {
        Rule::WeightsTernary => exactness::weights_ternary(evidence, catalogue),
        Rule::Params { low, high } => memory::params(evidence, catalogue, *low, *high),
        Rule::Accuracy { task, metric, against } => accuracy::beats(evidence, catalogue, task, metric, against),
        Rule::FasterThanBaselines { low } => speed::faster_than_baselines(evidence, catalogue, *low),
        Rule::LatencyRatios => speed::latency_ratios(evidence, catalogue),
        Rule::AbsoluteLatency { cpu, n_threads, ms } => {
            speed::absolute_latency(evidence, catalogue, cpu, *n_threads, *ms)
        }
        Rule::LessMemory => memory::less_memory(evidence, catalogue),
        Rule::PackedBytes { gb } => memory::packed_bytes(evidence, catalogue, *gb),
        Rule::EnergyFormula => energy_formula(catalogue),
        Rule::EnergyMeasured => energy_measured(evidence, catalogue),
        Rule::SameShapeF16 { arch, low, high } => speed::same_shape_f16(evidence, catalogue, arch, *low, *high),
        Rule::UpToF16 { layout, ratio } => speed::up_to_f16(evidence, catalogue, layout, *ratio),
        Rule::UpToKernel { layout, over, ratio } => speed::up_to_kernel(evidence, catalogue, layout, over, *ratio),
        Rule::Lossless { layout } => exactness::lossless(evidence, layout),
        Rule::Perplexity { task, value, error } => accuracy::perplexity(evidence, catalogue, task, *value, *error),
        Rule::RunsWithoutBitnetCpp => exactness::runs_without_bitnet_cpp(evidence, catalogue),
        Rule::RunsOnArm => exactness::runs_on_arm(evidence),
        Rule::NotBuilt { why } => Finding::not_measured(why),
    }
}

/// Joules per token off a counter. They stand beside the published ones, which no counter gave: there is nothing to refute.
fn energy_measured(evidence: &Evidence<'_>, catalogue: &Catalogue) -> Finding {
    let subject = |speed: &&Speed| {
        speed.model.shape() == Some(&catalogue.subject().id) && speed.model.weights == "ternary" && speed.n_gen > 0
    };
    let speeds = || evidence.speeds.iter().map(|(_, speed)| *speed).filter(subject);
    let per_token = |speed: &Speed| {
        let joules: Vec<f64> =
            speed.samples_joules.iter().map(|joules| joules / speed.samples.tokens.max(1) as f64).collect();
        stats::median_interval(&joules)
    };
    let measured = speeds().filter_map(|speed| Some((speed, per_token(speed)?)));
    match measured.min_by(|a, b| a.1.value.total_cmp(&b.1.value)) {
        Some((speed, joules)) => Finding::new(
            Verdict::NotComparable,
            format!("{:.3} J a token ({:.3} to {:.3})", joules.value, joules.low, joules.high),
            format!(
                "{} with {}, idle power included ({}); the published joules are a formula's",
                speed.workload,
                speed.code.kernel,
                speed.energy.as_deref().unwrap_or("counter unknown")
            ),
        ),
        None => Finding::not_measured(
            speeds().find_map(|speed| speed.energy.clone()).unwrap_or("no energy was read beside a decode".into()),
        ),
    }
}

fn energy_formula(catalogue: &Catalogue) -> Finding {
    let computed = |model| energy(model).published_terms_j();
    let equal = catalogue
        .models
        .iter()
        .filter(|model| format!("{:.3}", computed(model)) == format!("{:.3}", model.published.energy_j));
    let (equal, all) = (equal.count(), catalogue.models.len());
    let verdict = if equal == all { Verdict::Reproduced } else { Verdict::NotReproduced };
    let (subject, first) = (catalogue.subject(), &catalogue.baselines()[0]);
    let gap = computed(first) / computed(subject);
    let gap_with_head = energy(first).with_lm_head_j() / energy(subject).with_lm_head_j();
    let reason = format!(
        "arithmetic only, no joule was measured: the formula gives {equal} of {all} published values to three decimals; \
         with the lm head it leaves out, {} needs {gap_with_head:.1}x, not {gap:.1}x, as much",
        first.title
    );
    Finding::new(verdict, format!("{:.3} J by the formula", computed(subject)), reason)
}

#[cfg(test)]
pub(crate) mod test_records;
#[cfg(test)]
mod tests;

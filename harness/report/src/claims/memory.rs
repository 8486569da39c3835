//! Rules about size.

use ternbench_measure::record::Memory;

use super::evidence::Evidence;
use crate::catalogue::{Catalogue, PublishedModel};
use crate::ledger::{Finding, Verdict};

/// Bits per weight that the published "0.4 GB" counts.
const PUBLISHED_BITS: f64 = 1.58;

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// The memory of a published model: the subject's best, or a baseline in F16. The least resident peak counts.
fn of<'a>(evidence: &Evidence<'a>, model: &PublishedModel) -> Option<&'a Memory> {
    let weights = if model.ternary { "ternary" } else { "f16" };
    let fits = |memory: &&&Memory| {
        memory.model.shape() == Some(&model.id) && memory.model.weights == weights && memory.peak_rss_bytes > 0
    };
    evidence.memories.iter().filter(fits).copied().min_by_key(|memory| memory.peak_rss_bytes)
}

/// "Needs less memory than other models of its size."
pub(super) fn less_memory(evidence: &Evidence<'_>, catalogue: &Catalogue) -> Finding {
    let Some(subject) = of(evidence, catalogue.subject()) else {
        return Finding::not_measured("no memory of the ternary model");
    };
    let baselines: Vec<(&PublishedModel, &Memory)> =
        catalogue.baselines().iter().filter_map(|model| Some((model, of(evidence, model)?))).collect();
    if baselines.is_empty() {
        return Finding::not_measured("no memory of an F16 baseline");
    }
    let below = baselines.iter().filter(|(_, memory)| subject.peak_rss_bytes < memory.peak_rss_bytes).count();
    let verdict = if below == baselines.len() { Verdict::Reproduced } else { Verdict::NotReproduced };
    let one =
        |(model, memory): &(&PublishedModel, &Memory)| format!("{} {:.2} GB", model.title, gb(memory.peak_rss_bytes));
    let list: Vec<String> = baselines.iter().map(one).collect();
    let reset =
        if subject.peak_was_reset { "" } else { "; the peak could not be reset and may include earlier models" };
    let reason = format!(
        "resident peak below {below} of {} baselines measured: {}. Stored {:.2} GB, of that {:.2} GB embedding{reset}",
        baselines.len(),
        list.join("; "),
        gb(subject.stored_bytes),
        gb(subject.stored_embedding_bytes)
    );
    Finding::new(verdict, format!("{:.2} GB resident peak ({})", gb(subject.peak_rss_bytes), subject.kernel), reason)
}

/// "0.4 GB", which is linear parameters x 1.58 / 8.
pub(super) fn packed_bytes(evidence: &Evidence<'_>, catalogue: &Catalogue, published_gb: f64) -> Finding {
    let fits = |memory: &&&Memory| {
        memory.model.shape() == Some(&catalogue.subject().id)
            && memory.model.weights == "ternary"
            && memory.packed_bytes > 0
    };
    let Some(memory) = evidence.memories.iter().filter(fits).min_by_key(|memory| memory.packed_bytes) else {
        return Finding::not_measured("no memory of the ternary model");
    };
    let rounded = (gb(memory.packed_bytes) * 10.0).round() / 10.0;
    let verdict = if rounded <= published_gb { Verdict::Reproduced } else { Verdict::NotReproduced };
    let params = memory.n_params_linear as f64;
    let reason = format!(
        "{:.2} bits a weight as {} packs them; {:.2} G linear parameters x {PUBLISHED_BITS} / 8 would be {:.2} GB; with the embedding {:.2} GB; resident peak {:.2} GB",
        memory.packed_bytes as f64 * 8.0 / params,
        memory.kernel,
        params / 1e9,
        params * PUBLISHED_BITS / 8e9,
        gb(memory.packed_bytes + memory.embedding_bytes),
        gb(memory.peak_rss_bytes)
    );
    Finding::new(verdict, format!("{:.2} GB packed", gb(memory.packed_bytes)), reason)
}

/// "2 billion parameters."
pub(super) fn params(evidence: &Evidence<'_>, catalogue: &Catalogue, low: f64, high: f64) -> Finding {
    let Some(load) = evidence.loads.iter().find(|load| load.model.shape() == Some(&catalogue.subject().id)) else {
        return Finding::not_measured("the ternary model was not loaded");
    };
    let (linear, all) = (load.n_params_linear as f64, load.n_params as f64);
    let inside = |n: f64| (low..high).contains(&n);
    let verdict = if inside(linear) && inside(all) { Verdict::Reproduced } else { Verdict::NotReproduced };
    let source = if load.model.is_synthetic() { "counted on the published shape" } else { "counted in the file" };
    Finding::new(
        verdict,
        format!("{:.2} B", all / 1e9),
        format!("{source}: {:.3} B in linear layers, {:.3} B with the embedding", linear / 1e9, all / 1e9),
    )
}

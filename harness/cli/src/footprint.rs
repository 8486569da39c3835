//! What a model occupies, part by part, and how soon it gives its first token.

use anyhow::Result;
use ternbench_kernels::Pool;
use ternbench_measure::{memory, record};
use ternbench_model::weights::WeightSource;

use crate::open::Loaded;
use crate::workload::{Bench, Workload};

/// Runs a prompt of `n_prompt` tokens on a model that was just loaded from `source`, for its time to first token and its memory.
/// Call it before anything else runs on the model: the first pass pays for what later ones find ready.
pub fn measure(
    source: &dyn WeightSource,
    loaded: &Loaded,
    pool: &Pool,
    n_prompt: usize,
) -> Result<(record::Load, record::Memory)> {
    let workload = Workload::prefill(n_prompt);
    let mut bench = Bench::new(loaded.engine(pool), workload)?;
    let prefill_ns = bench.run()?;
    let load = record::Load {
        first_token_ns: loaded.load.samples_ns.iter().map(|load_ns| load_ns + prefill_ns).collect(),
        first_token_n_prompt: n_prompt as u64,
        ..loaded.load.clone()
    };
    Ok((load, memory_of(source, loaded, &mut bench, workload)?))
}

/// The memory of a model that has run `bench`.
fn memory_of(
    source: &dyn WeightSource,
    loaded: &Loaded,
    bench: &mut Bench<'_>,
    workload: Workload,
) -> Result<record::Memory> {
    // What loading freed is the allocator's, not the model's.
    ternbench_kernels::bytes::trim_heap();
    let now = memory::read().unwrap_or_default();
    let config = loaded.model.config();
    let weights = loaded.model.weight_bytes();
    let embedding = source.embedding()?.data().len() as u64 + source.head()?.map_or(0, |head| head.data().len() as u64);
    let is_ternary = loaded.is_ternary();
    let stored = match source.stored_bytes() {
        // As a file would hold them: four trits to a byte.
        0 if is_ternary => config.linear_parameters() / 4 + embedding + weights.vectors,
        0 => weights.linear + embedding + weights.vectors,
        bytes => bytes,
    };
    // Dense tensors of a file are windows into its map; ternary ones are packed anew, or are windows into a file kept beside it.
    let mut mapped = 0;
    if source.stored_bytes() > 0 {
        mapped += weights.head + weights.embedding;
        mapped += if loaded.linears_are_windows || !is_ternary { weights.linear } else { 0 };
        mapped += if loaded.screen_is_window { weights.screen } else { 0 };
    }
    Ok(record::Memory {
        model: loaded.info.clone(),
        kernel: loaded.model.kernel_name().to_owned(),
        n_threads: loaded.load.n_threads,
        workload: workload.to_string(),
        stored_bytes: stored,
        stored_embedding_bytes: embedding,
        mapped_bytes: source.stored_bytes(),
        packed_bytes: weights.linear,
        embedding_bytes: weights.head + weights.embedding + weights.screen,
        head_screen_bytes: weights.screen,
        weights_mapped_bytes: mapped,
        vector_bytes: weights.vectors,
        kv_bytes: bench.kv_bytes(),
        scratch_bytes: bench.engine().scratch_bytes(),
        resident_bytes: now.rss_bytes.saturating_sub(loaded.before.rss_bytes),
        resident_file_bytes: now
            .file_mapped_bytes
            .unwrap_or(0)
            .saturating_sub(loaded.before.file_mapped_bytes.unwrap_or(0)),
        n_params_linear: config.linear_parameters(),
        peak_rss_bytes: now.peak_rss_bytes.saturating_sub(loaded.before.rss_bytes),
        baseline_rss_bytes: loaded.before.rss_bytes,
        peak_was_reset: loaded.peak_was_reset,
    })
}

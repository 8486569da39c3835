//! What a model takes: memory in parts that add up, and the time until it can run.

use ternbench_measure::Record;
use ternbench_measure::record::Body;
use ternbench_measure::stats::{self, Estimate};

use crate::catalogue::Catalogue;
use crate::frame::memory_rows;
use crate::table::{Kind, Table, Value, column};

/// Memory, least peak first.
pub fn memory(records: &[Record]) -> Table {
    let columns = [
        column("title", "model", Kind::Text),
        column("model", "", Kind::Text),
        column("weights", "weights", Kind::Text),
        column("kernel", "kernel", Kind::Text),
        column("stored_bytes", "stored", Kind::Bytes),
        column("mapped_bytes", "mapped", Kind::Bytes),
        column("packed_bytes", "packed linear", Kind::Bytes),
        column("embedding_bytes", "+ embedding", Kind::Bytes),
        column("weights_mapped_bytes", "− windows", Kind::Bytes),
        column("vector_bytes", "+ norms", Kind::Bytes),
        column("kv_bytes", "+ KV cache", Kind::Bytes),
        column("scratch_bytes", "+ scratch", Kind::Bytes),
        column("resident_file_bytes", "+ file pages", Kind::Bytes),
        column("accounted_bytes", "= parts", Kind::Bytes),
        column("resident_bytes", "resident", Kind::Bytes),
        column("unaccounted_share", "unexplained", Kind::Share),
        column("peak_rss_bytes", "resident peak", Kind::Bytes),
    ];
    Table::new(columns).with_rows(memory_rows(records).into_iter().map(|memory| {
        let shape = memory.model.shape().unwrap_or(&memory.model.model);
        let known = |bytes: u64| (bytes > 0).then_some(bytes);
        vec![
            Catalogue::get().title(shape).into(),
            memory.model.model.clone().into(),
            memory.model.weights.clone().into(),
            memory.kernel.clone().into(),
            memory.stored_bytes.into(),
            memory.mapped_bytes.into(),
            memory.packed_bytes.into(),
            memory.embedding_bytes.into(),
            memory.weights_mapped_bytes.into(),
            memory.vector_bytes.into(),
            memory.kv_bytes.into(),
            memory.scratch_bytes.into(),
            memory.resident_file_bytes.into(),
            memory.accounted_bytes().into(),
            known(memory.resident_bytes).into(),
            memory.unaccounted_share().into(),
            known(memory.peak_rss_bytes).into(),
        ]
    }))
}

/// Loading, and the time to the first token.
pub(super) fn load(records: &[Record]) -> Table {
    let columns = [
        column("title", "model", Kind::Text),
        column("model", "", Kind::Text),
        column("weights", "weights", Kind::Text),
        column("kernel", "packed for", Kind::Text),
        column("n_threads", "threads", Kind::Count),
        column("load_s", "loading, s", Kind::Estimate),
        column("first_token_s", "to the first token, s", Kind::Estimate),
        column("first_token_n_prompt", "prompt tokens", Kind::Count),
        column("n_params", "parameters", Kind::Count),
    ];
    Table::new(columns).with_rows(records.iter().filter_map(|record| match &record.body {
        Body::Load(load) => {
            let words = [
                Catalogue::get().title(load.model.shape().unwrap_or(&load.model.model)),
                &load.model.model,
                &load.model.weights,
                &load.kernel,
            ];
            let prompt = (!load.first_token_ns.is_empty()).then_some(load.first_token_n_prompt);
            let numbers: [Value; 5] = [
                load.n_threads.into(),
                seconds(&load.samples_ns)?.into(),
                seconds(&load.first_token_ns).into(),
                prompt.into(),
                load.n_params.into(),
            ];
            Some(words.map(Value::from).into_iter().chain(numbers).collect())
        }
        _ => None,
    }))
}

fn seconds(ns: &[u64]) -> Option<Estimate> {
    let seconds: Vec<f64> = ns.iter().map(|&ns| ns as f64 / 1e9).collect();
    stats::median_interval(&seconds)
}

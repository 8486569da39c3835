//! `--kernel auto`: which kernels a model's shapes get, from a short measurement kept per machine, program and thread count.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use ternbench_kernels::registry;
use ternbench_kernels::{Dispatch, Exactness, Pair, Pool, TernaryKernel, isa};
use ternbench_measure::run_dir::write_atomic;
use ternbench_measure::{Env, Host};

use super::timing::{self, Cache};
use crate::console;

/// Batches that are measured: decode, where a second kernel may begin to pay, and prefill.
const BATCHES: [usize; 4] = [1, 4, 16, 128];
/// Another layout for prefill costs a second packed copy: it must be this much faster than the best kernel that needs none.
const SECOND_COPY_GAIN: f64 = 1.10;
/// A shape gets kernels of its own when they are this much faster there: less is noise.
const SHAPE_GAIN: f64 = 1.05;
/// Below this many weights the choice is not worth measuring.
const SMALLEST: usize = 1 << 20;

/// Times per kernel, by shape and batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What the times hold for; a table of another machine or program is not used.
    key: Key,
    shapes: Vec<Shape>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    cpu: String,
    features: Vec<String>,
    /// Size and modification time of the program: another build may have other kernels.
    program: String,
    n_threads: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Shape {
    n: usize,
    k: usize,
    batches: Vec<Batch>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Batch {
    m: usize,
    /// Nanoseconds of `prepare` and `compute`, medians.
    ns: BTreeMap<String, f64>,
}

/// The kernels for `shapes` on `pool`: from the table of this machine, measured first where it lacks one of them.
pub fn dispatch(shapes: &[(usize, usize)], pool: &Pool, env: &Env) -> Result<Dispatch> {
    let shapes: Vec<_> = shapes.iter().copied().filter(|(n, k)| n * k >= SMALLEST).collect();
    if shapes.is_empty() || cfg!(debug_assertions) {
        return Ok(registry::default_kernel().into());
    }
    let features: Vec<&str> = isa::detected().iter().map(|feature| feature.name()).collect();
    let host = Host::describe(&features);
    let key =
        Key { cpu: host.cpu.clone(), features: host.features.clone(), program: program(), n_threads: pool.n_threads() };
    let path = env.cache.as_ref().map(|folder| folder.join(format!("tuning-{}t.json", pool.n_threads())));
    let mut table = path.as_deref().and_then(|path| read(path, &key)).unwrap_or(Table { key, shapes: Vec::new() });
    let missing: Vec<_> = shapes.iter().filter(|(n, k)| !table.shapes.iter().any(|s| (s.n, s.k) == (*n, *k))).collect();
    if !missing.is_empty() {
        for &&(n, k) in &missing {
            table.shapes.push(measure(n, k, pool, host.last_level_cache_bytes())?);
        }
        if let Some(path) = &path {
            // Without a cache the next run measures again: worth a word, not worth failing.
            if let Err(error) = write(path, &table) {
                eprintln!("warning: the tuning table is not kept: {error:#}");
            }
        }
    }
    Ok(select(&table, &shapes, &candidates()))
}

/// What may be chosen: exact kernels, vectorised where there are any.
fn candidates() -> Vec<&'static dyn TernaryKernel> {
    let exact: Vec<_> = registry::supported().filter(|k| k.info().exactness == Exactness::Exact).collect();
    let vectorised: Vec<_> = exact.iter().copied().filter(|k| k.info().isa() != "scalar").collect();
    if vectorised.is_empty() { exact } else { vectorised }
}

fn program() -> String {
    let metadata = std::env::current_exe().and_then(std::fs::metadata);
    let modified = metadata.as_ref().ok().and_then(|m| m.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok());
    format!("{}-{}", metadata.map_or(0, |m| m.len()), modified.unwrap_or_default().as_millis())
}

/// A table that cannot be read, or is another's, counts as none.
fn read(path: &Path, key: &Key) -> Option<Table> {
    let table: Table = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (table.key == *key).then_some(table)
}

fn write(path: &Path, table: &Table) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(write_atomic(path, &serde_json::to_vec(table)?)?)
}

fn measure(n: usize, k: usize, pool: &Pool, cache_bytes: u64) -> Result<Shape> {
    let spinner = console::spinner(&format!("tuning {n}x{k} on {} threads, once on this machine", pool.n_threads()));
    let w = timing::random_matrix(n, k)?;
    let packed = timing::pack(&candidates(), &w, cache_bytes);
    let batch = |m| -> Result<Batch> {
        let timings = timing::time(
            &packed.iter().collect::<Vec<_>>(),
            [n, k, m],
            Cache::Cold,
            pool,
            7,
            Some(Duration::from_secs(1)),
        )?;
        let ns = timings.iter().filter(|t| t.failed.is_none()).map(|t| (t.name.to_owned(), t.total_ns()));
        Ok(Batch { m, ns: ns.collect() })
    };
    let batches = BATCHES.into_iter().map(batch).collect::<Result<_>>()?;
    spinner.finish_and_clear();
    Ok(Shape { n, k, batches })
}

/// The pair that is fastest over all shapes, and for a shape where another is clearly faster, that.
fn select(table: &Table, shapes: &[(usize, usize)], candidates: &[&'static dyn TernaryKernel]) -> Dispatch {
    let of = |&(n, k): &(usize, usize)| table.shapes.iter().find(|s| (s.n, s.k) == (n, k));
    let measured: Vec<&Shape> = shapes.iter().filter_map(of).collect();
    let default = pair(&measured, candidates, None);
    let mut by_shape = BTreeMap::new();
    for shape in &measured {
        let own = pair(&[shape], candidates, Some(default));
        if own.name() != default.name() || own.prefill_from != default.prefill_from {
            by_shape.insert((shape.n, shape.k), own);
        }
    }
    Dispatch { by_shape, ..default.into() }
}

/// The best pair for `shapes` together; a kernel of `present` is left only for one that is clearly faster.
fn pair(shapes: &[&Shape], candidates: &[&'static dyn TernaryKernel], present: Option<Pair>) -> Pair {
    let time = |kernel: &dyn TernaryKernel, m: usize| -> f64 {
        let ns = |shape: &&Shape| shape.batches.iter().find(|b| b.m == m)?.ns.get(kernel.info().name).copied();
        shapes.iter().map(|shape| ns(shape).unwrap_or(f64::INFINITY)).sum()
    };
    let fastest = |m: usize, fits: &dyn Fn(&dyn TernaryKernel) -> bool| {
        let fitting = candidates.iter().copied().filter(|kernel| fits(*kernel));
        fitting.min_by(|a, b| time(*a, m).total_cmp(&time(*b, m)))
    };
    let keep = |found: &'static dyn TernaryKernel, present: Option<&'static dyn TernaryKernel>, m: usize| match present
    {
        Some(present) if time(present, m) < time(found, m) * SHAPE_GAIN => present,
        _ => found,
    };
    let (few, many) = (BATCHES[0], BATCHES[BATCHES.len() - 1]);
    let best = fastest(few, &|_| true).unwrap_or(registry::default_kernel());
    let decode = keep(best, present.map(|p| p.decode), few);
    let same_layout = fastest(many, &|kernel| kernel.info().layout == decode.info().layout).unwrap_or(decode);
    let any = fastest(many, &|_| true).unwrap_or(decode);
    let best = if time(any, many) * SECOND_COPY_GAIN < time(same_layout, many) { any } else { same_layout };
    let prefill = keep(best, present.map(|p| p.prefill), many);
    let prefill_from = BATCHES.into_iter().find(|&m| time(prefill, m) < time(decode, m)).unwrap_or(many);
    Pair { decode, prefill, prefill_from }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(n, k, [(m, ns of each kernel)])`.
    type Times<'a> = (usize, usize, &'a [(usize, [f64; 3])]);

    fn table(shapes: &[Times<'_>], names: [&str; 3]) -> Table {
        let batch =
            |&(m, ns): &(usize, [f64; 3])| Batch { m, ns: names.map(str::to_owned).into_iter().zip(ns).collect() };
        let shapes = shapes.iter().map(|&(n, k, batches)| Shape { n, k, batches: batches.iter().map(batch).collect() });
        Table { key: Key::default(), shapes: shapes.collect() }
    }

    fn kernels() -> Vec<&'static dyn TernaryKernel> {
        // Two of one layout and one of another, whatever this CPU has: the scalar ones run everywhere.
        ["scalar-i2s-unpack", "scalar-i8-naive"].map(|name| registry::find(name).expect("everywhere")).to_vec()
    }

    #[test]
    fn a_second_copy_must_pay_and_a_shape_must_be_clearly_faster_to_stand_apart() {
        let names = ["scalar-i2s-unpack", "scalar-i8-naive", "unused"];
        let times = |decode: [f64; 2], prefill: [f64; 2]| {
            BATCHES.map(|m| (m, if m < 16 { [decode[0], decode[1], 9.0] } else { [prefill[0], prefill[1], 9.0] }))
        };
        let select = |shapes: &[Times<'_>]| {
            let list: Vec<_> = shapes.iter().map(|&(n, k, _)| (n, k)).collect();
            select(&table(shapes, names), &list, &kernels())
        };
        // 5 % faster in prefill is not worth a second copy, 20 % is; it begins where it is first faster.
        let near = times([10.0, 20.0], [10.0, 9.5]);
        assert_eq!(select(&[(1, 1, &near)]).default.name(), "scalar-i2s-unpack");
        let far = times([10.0, 20.0], [10.0, 8.0]);
        let found = select(&[(1, 1, &far)]).default;
        assert_eq!((found.name().as_str(), found.prefill_from), ("scalar-i2s-unpack+scalar-i8-naive", 16));
        // The second shape alone would take the other kernel by 2 %: noise. By 50 %: its own.
        let (big, noise, clear) =
            (times([10.0, 20.0], [10.0, 20.0]), times([1.02, 1.0], [1.02, 1.0]), times([2.0, 1.0], [2.0, 1.0]));
        assert!(select(&[(1, 1, &big), (2, 2, &noise)]).by_shape.is_empty());
        let found = select(&[(1, 1, &big), (2, 2, &clear)]);
        assert_eq!(found.default.name(), "scalar-i2s-unpack");
        assert_eq!(found.of(2, 2).name(), "scalar-i8-naive");
    }

    #[test]
    fn a_table_is_read_back_by_its_own_machine_and_program_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache/tuning.json");
        let key = Key { cpu: "a".into(), n_threads: 2, ..Key::default() };
        assert_eq!(read(&path, &key), None);
        let written = Table { key: key.clone(), ..table(&[(1, 2, &[(1, [1.0, 2.0, 3.0])])], ["a", "b", "c"]) };
        write(&path, &written).unwrap();
        assert_eq!(read(&path, &key), Some(written));
        assert_eq!(read(&path, &Key { n_threads: 1, ..key.clone() }), None);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(read(&path, &key), None, "a torn table is measured again");
    }
}

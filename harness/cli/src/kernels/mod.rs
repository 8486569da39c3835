//! `ternbench kernels`: the catalogue, its proof; the microbenchmark is in [`mod@bench`].

mod bench;
mod timing;
pub mod tuning;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use ternbench_kernels::TernaryKernel;
use ternbench_kernels::registry::{self, KERNELS};
use ternbench_kernels::verify;
use ternbench_measure::{Env, record};
use ternbench_model::ModelConfig;
use ternbench_model::weights::LinearName;
use ternbench_report::table::{self, Align};

use crate::console;
use crate::model::Output;
use crate::open;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List every kernel, and why one cannot run here
    #[command(after_help = "Example:\n  ternbench kernels list -o json")]
    List {
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Prove the kernels equal to the oracle on a model's shapes
    #[command(
        after_help = "Examples:\n  ternbench kernels verify\n  ternbench kernels verify --filter avx2 --shapes llama-3.2-1b -o json"
    )]
    Verify {
        /// Only kernels whose name contains this
        #[arg(long, default_value = "")]
        filter: String,
        /// The layer shapes: a name of datasets/models or datasets/shapes
        #[arg(long, default_value = "bitnet-2b4t")]
        shapes: String,
        /// Output format
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Time every kernel on real layer shapes, verified first
    #[command(
        after_help = "Examples:\n  ternbench kernels bench\n  ternbench kernels bench --filter i2s -M 1,128 -t 1,2 -r 20\n  ternbench kernels bench --shapes llama3-8b --cache hot --check"
    )]
    Bench(bench::Args),
}

pub fn run(command: Command, env: &Env) -> Result<ExitCode> {
    match command {
        Command::List { output } => list(output, env),
        Command::Verify { filter, shapes, output } => verify_command(&filter, &shapes, output),
        Command::Bench(args) => bench::run(&args, env),
    }
}

fn list(output: Output, env: &Env) -> Result<ExitCode> {
    if output == Output::Json {
        let kernels: Vec<_> = KERNELS
            .iter()
            .map(|entry| {
                let i = entry.info;
                json!({
                    "name": i.name, "summary": i.summary, "isa": i.isa(), "layout": i.layout, "bits_per_weight": i.bits_per_weight,
                    "exactness": i.exactness.to_string(), "features": i.features.iter().map(|f| f.name()).collect::<Vec<_>>(),
                    "source": i.source, "supported": entry.kernel().is_ok(),
                    "unsupported_because": entry.kernel().err().map(|reason| reason.to_string()),
                    "default": i.name == registry::default_kernel().info().name,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&kernels)?);
        return Ok(ExitCode::SUCCESS);
    }
    let header =
        ["kernel", "layout", "bits", "exactness", "here", "what it does", "source"].map(|name| (name, Align::Left));
    let rows: Vec<Vec<String>> = KERNELS
        .iter()
        .map(|entry| {
            let i = entry.info;
            let here = match entry.kernel() {
                Ok(_) if i.name == registry::default_kernel().info().name => "default".to_owned(),
                Ok(_) => "yes".to_owned(),
                Err(reason) => reason.to_string(),
            };
            let bits = i.bits_per_weight.to_string();
            let texts = [i.name, i.layout, &bits, &i.exactness.to_string(), &here, i.summary, i.source];
            texts.map(str::to_owned).to_vec()
        })
        .collect();
    println!("{}", table::render(&header, &rows, console::tables(env)));
    Ok(ExitCode::SUCCESS)
}

/// The kernels whose name contains `filter`, with why any of them cannot run.
fn select(filter: &str) -> Result<(Vec<&'static dyn TernaryKernel>, Vec<record::Verify>)> {
    let (mut kernels, mut skipped) = (Vec::new(), Vec::new());
    for entry in KERNELS.iter().filter(|entry| entry.info.name.contains(filter)) {
        match entry.kernel() {
            Ok(kernel) => kernels.push(kernel),
            Err(reason) => skipped.push(record::Verify {
                code: open::code(entry.info.name),
                layout: entry.info.layout.to_owned(),
                skipped: Some(reason.to_string()),
                ..record::Verify::default()
            }),
        }
    }
    if kernels.is_empty() && skipped.is_empty() {
        let names: Vec<_> = KERNELS.iter().map(|entry| entry.info.name).collect();
        bail!("no kernel's name contains '{filter}'; there are: {}", names.join(", "));
    }
    Ok((kernels, skipped))
}

/// The distinct `(n, k)` of `name`: a model of datasets/models, or a list of datasets/shapes.
fn named_shapes(name: &str) -> Result<Vec<(usize, usize)>> {
    let file = open::datasets().join("shapes").join(format!("{name}.toml"));
    if !file.is_file() {
        return Ok(layer_shapes(&open::manifest(name)?.config()));
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let list: ShapeList = toml::from_str(&text).with_context(|| format!("{} is no list of shapes", file.display()))?;
    // More weights than any layer has.
    let legal = |shape: &ShapeLine| shape.n.checked_mul(shape.k).is_some_and(|n| (1..=1 << 32).contains(&n));
    if let Some(shape) = list.shapes.iter().find(|&shape| !legal(shape)) {
        bail!("{}: {} x {} is no shape: a matrix has between 1 and 2^32 weights", file.display(), shape.n, shape.k);
    }
    Ok(list.shapes.iter().map(|shape| (shape.n, shape.k)).collect::<BTreeSet<_>>().into_iter().collect())
}

/// A file of datasets/shapes.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapeList {
    #[expect(dead_code, reason = "for the reader of the file")]
    about: String,
    shapes: Vec<ShapeLine>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapeLine {
    n: usize,
    k: usize,
}

/// The distinct `(n, k)` of a model's linear layers.
pub fn layer_shapes(config: &ModelConfig) -> Vec<(usize, usize)> {
    let shapes: BTreeSet<_> = LinearName::ALL.iter().map(|&which| config.linear_shape(which)).collect();
    shapes.into_iter().collect()
}

/// The portable kernel that is compared besides the oracle.
const PORTABLE: &str = "scalar-i2s-unpack";

/// Whether a kernel runs inside whole models, and in quick runs at all: of the portable ones, which take seconds a token, only the oracle
/// and one other do.
pub fn is_fast(name: &str) -> bool {
    !name.starts_with("scalar-") || [registry::ORACLE_KERNEL, PORTABLE].contains(&name)
}

/// Proves every kernel that runs here and that is `wanted` on `shapes`, and says why others do not run.
pub fn prove(
    filter: &str,
    wanted: impl Fn(&str) -> bool,
    shapes: &[(usize, usize)],
    batches: &[usize],
) -> Result<Vec<record::Verify>> {
    let (mut kernels, skipped) = select(filter)?;
    kernels.retain(|kernel| wanted(kernel.info().name));
    let mut records: Vec<record::Verify> = kernels
        .iter()
        .map(|kernel| record::Verify {
            code: open::code(kernel.info().name),
            layout: kernel.info().layout.to_owned(),
            ok: true,
            ..record::Verify::default()
        })
        .collect();
    let bar = console::bar(shapes.len() as u64, "verifying the kernels");
    for &(n, k) in shapes {
        for (result, record) in verify::verify(&kernels, n, k, batches).into_iter().zip(&mut records) {
            record.shapes.extend(batches.iter().map(|&m| [n, k, m]));
            match result {
                Ok(cases) => record.cases += cases,
                Err(mismatch) => {
                    record.ok = false;
                    record.first_mismatch.get_or_insert(mismatch.to_string());
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    records.extend(skipped);
    Ok(records)
}

/// Batches that `verify` tries: one token, and one more than a register tile.
pub const VERIFY_BATCHES: [usize; 2] = [1, 5];

fn verify_command(filter: &str, shapes: &str, output: Output) -> Result<ExitCode> {
    let records = prove(filter, |_| true, &named_shapes(shapes)?, &VERIFY_BATCHES)?;
    let all_ok = records.iter().all(|record| record.ok || record.skipped.is_some());
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&records)?);
    } else {
        for record in &records {
            let verdict = match (&record.skipped, &record.first_mismatch) {
                (Some(reason), _) => format!("skipped: {reason}"),
                (_, Some(mismatch)) => format!("WRONG: {mismatch}"),
                _ => format!("equal to the oracle in {} cases on {} shapes", record.cases, record.shapes.len()),
            };
            println!("{:32} {verdict}", record.code.kernel);
        }
    }
    Ok(if all_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

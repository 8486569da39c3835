//! Packed weights kept beside the model they came from, so that the next start packs nothing.
//!
//! A [`Place`] belongs to one model as it lies on the disk. What is kept there is used only while the model's files have the names,
//! lengths and times of change that they had, are read the same way, and the kernels still pack as they did: anything else is packed
//! anew and replaced. Files appear whole or not at all, and their checksums are compared on opening. Where the system can, they are
//! mapped and not read: like a model's file, they may be replaced while in use, but not be written to.

mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use ternbench_kernels::driver::{TernaryWeights, Trits};
use ternbench_kernels::{Bytes, DenseMatrix, Dispatch, Pool, Screen, TernaryKernel, TernaryMatrix, Weights};

use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::transformer::Transformer;
use crate::weights::{LinearName, LinearWeights, Origin, StoredTensor, VectorName, WeightSource};

/// Where the packed forms of one model are kept.
#[derive(Clone, Debug)]
pub struct Place {
    /// The model's file, or the file in its folder that the kept ones are named after.
    base: PathBuf,
    /// What tells the model's files from others, without reading them.
    identity: String,
}

/// What is kept beside the packed bytes of the linear layers.
#[derive(Serialize, Deserialize)]
struct Notes {
    model_hash: String,
    linears: Vec<Note>,
}

/// One linear layer.
#[derive(Serialize, Deserialize)]
struct Note {
    n: usize,
    k: usize,
    scale: f32,
    zeros: u64,
    plus: u64,
    copies: usize,
}

impl Place {
    /// The place of a model's packed forms, beside its file or in its folder; `None` for weights without a file.
    ///
    /// # Errors
    /// When the system does not tell a file's length and time of change.
    pub fn beside(source: &dyn WeightSource) -> Result<Option<Self>, LoadError> {
        let Some(Origin { files, options }) = source.origin() else { return Ok(None) };
        let mut identity = format!("{options:?}");
        for file in &files {
            let metadata = std::fs::metadata(file).map_err(|error| LoadError::io(file, error))?;
            let changed = metadata.modified().map_err(|error| LoadError::io(file, error))?;
            let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            identity += &format!("\n{name} {} {changed}", metadata.len());
        }
        Ok(files.into_iter().next().map(|base| Self { base, identity }))
    }

    /// The model with its linear layers as they were packed for `kernels`; `None` where nothing fitting is kept.
    ///
    /// # Errors
    /// When what is kept is damaged or cannot be read. The model itself is not.
    pub fn linears<'s>(
        &self,
        source: &'s dyn WeightSource,
        kernels: &Dispatch,
        pool: &Pool,
    ) -> Result<Option<PackedSource<'s>>, LoadError> {
        let (path, key) = self.of_linears(source.config(), kernels);
        let Some(store) = store::read(&path, &key, pool)? else { return Ok(None) };
        let damaged = || LoadError::file(&path, "its contents do not fit the model: delete it");
        let notes: Notes = serde_json::from_value(store.notes).map_err(|_| damaged())?;
        let mut sections = store.sections.into_iter();
        let mut linears = Vec::with_capacity(notes.linears.len());
        for note in notes.linears {
            let copies: Vec<Bytes> = sections.by_ref().take(note.copies).collect();
            let about = Trits { scale: note.scale, zeros: note.zeros, plus: note.plus };
            let weights = match linears.iter().find(|other: &&TernaryWeights| other.shape() == (note.n, note.k)) {
                Some(other) => other.another(about, copies),
                None => TernaryWeights::from_packed(kernels.of(note.n, note.k), note.n, note.k, about, copies),
            };
            linears.push(weights.ok_or_else(damaged)?);
        }
        let config = source.config();
        let shapes = (0..config.n_layers).flat_map(|_| LinearName::ALL.map(|which| config.linear_shape(which)));
        if sections.next().is_some() || !shapes.eq(linears.iter().map(TernaryWeights::shape)) {
            return Err(damaged());
        }
        Ok(Some(PackedSource { source, linears, is_mapped: store.is_mapped, hash: notes.model_hash }))
    }

    /// Keeps the linear layers of `model`, whose files have the sha256 `hash`. Nothing happens where they are not all ternary.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_linears(&self, model: &Transformer, hash: &str) -> Result<(), LoadError> {
        let mut notes = Notes { model_hash: hash.to_owned(), linears: Vec::new() };
        let mut sections = Vec::new();
        for linear in (0..model.config().n_layers).flat_map(|layer| model.linears(layer)) {
            let Weights::Ternary(weights) = &linear.weights else { return Ok(()) };
            let (packed, Trits { scale, zeros, plus }) = (weights.packed(), weights.about());
            notes.linears.push(Note { n: linear.n(), k: linear.k(), scale, zeros, plus, copies: packed.len() });
            sections.extend(packed);
        }
        let (path, key) = self.of_linears(model.config(), model.kernels());
        let notes = serde_json::to_value(notes).map_err(|error| LoadError::file(&path, error))?;
        store::write(&path, &key, notes, &sections)
    }

    /// The copy that the model's head is screened with, if it is kept, and whether it is a window into a mapped file.
    ///
    /// # Errors
    /// When what is kept is damaged or cannot be read.
    pub fn screen(&self, pool: &Pool) -> Result<Option<(Bytes, bool)>, LoadError> {
        let (path, key) = self.of_screen();
        let Some(store) = store::read(&path, &key, pool)? else { return Ok(None) };
        Ok(store.sections.into_iter().next().map(|copy| (copy, store.is_mapped)))
    }

    /// Keeps the copy that a head is screened with.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_screen(&self, screen: &Screen) -> Result<(), LoadError> {
        let (path, key) = self.of_screen();
        store::write(&path, &key, serde_json::Value::Null, &[screen.packed()])
    }

    fn of_linears(&self, config: &ModelConfig, kernels: &Dispatch) -> (PathBuf, String) {
        let mut key = self.identity.clone();
        let mut layouts: Vec<&str> = Vec::new();
        let mut fingerprints = BTreeMap::new();
        for which in LinearName::ALL {
            let (n, k) = config.linear_shape(which);
            let pair = kernels.of(n, k);
            let both = if pair.shares_layout() { vec![pair.decode] } else { vec![pair.decode, pair.prefill] };
            for kernel in both {
                let layout = kernel.info().layout;
                let print = fingerprints.entry(kernel.info().name).or_insert_with(|| fingerprint(kernel));
                key += &format!("\n{which:?} {layout} {print:016x}");
                if !layouts.contains(&layout) {
                    layouts.push(layout);
                }
            }
        }
        (self.named(&layouts.join("+")), key)
    }

    fn of_screen(&self) -> (PathBuf, String) {
        let sample = Screen::sample().map_or(0, |copy| store::checksum(&copy));
        (self.named("head"), format!("{}\nscreen {sample:016x}", self.identity))
    }

    fn named(&self, what: &str) -> PathBuf {
        let name = self.base.file_name().unwrap_or_default().to_string_lossy();
        self.base.with_file_name(format!("{name}.{what}.packed"))
    }
}

/// A hash of how a kernel packs: of the bytes of a small matrix with all trits in every place.
fn fingerprint(kernel: &dyn TernaryKernel) -> u64 {
    let (n, k) = (37, 403);
    let trits = (0..n * k).map(|i| ((i * i + i / 7) % 3) as i8 - 1).collect();
    let matrix = TernaryMatrix::new(n, k, trits, 1.0);
    matrix.map_or(0, |matrix| store::checksum(&kernel.pack(&matrix).data))
}

/// A model whose linear layers were packed before.
pub struct PackedSource<'s> {
    source: &'s dyn WeightSource,
    linears: Vec<TernaryWeights>,
    is_mapped: bool,
    hash: String,
}

impl PackedSource<'_> {
    /// Whether its packed layers are windows into a mapped file.
    pub fn is_mapped(&self) -> bool {
        self.is_mapped
    }
}

impl WeightSource for PackedSource<'_> {
    fn packed(&self, layer: usize, which: LinearName) -> Option<TernaryWeights> {
        let at = LinearName::ALL.iter().position(|&name| name == which)?;
        self.linears.get(layer * LinearName::ALL.len() + at).cloned()
    }

    /// As it was when the layers were packed: the file is not read for it.
    fn hash(&self) -> Result<String, LoadError> {
        Ok(self.hash.clone())
    }

    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    fn embedding(&self) -> Result<DenseMatrix, LoadError> {
        self.source.embedding()
    }

    fn head(&self) -> Result<Option<DenseMatrix>, LoadError> {
        self.source.head()
    }

    fn linear(&self, layer: usize, which: LinearName) -> Result<LinearWeights, LoadError> {
        self.source.linear(layer, which)
    }

    fn vector(&self, name: VectorName) -> Result<Vec<f32>, LoadError> {
        self.source.vector(name)
    }

    fn stored_bytes(&self) -> u64 {
        self.source.stored_bytes()
    }

    fn name(&self) -> &str {
        self.source.name()
    }

    fn stored(&self) -> Vec<StoredTensor> {
        self.source.stored()
    }

    fn release(&self) {
        self.source.release();
    }

    fn origin(&self) -> Option<Origin> {
        self.source.origin()
    }
}

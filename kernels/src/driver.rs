//! Runs a matrix of any kind over a batch of tokens: prepares the input once, splits the rows over the team, applies the
//! scales. The same for every kernel, so a speed difference between two kernels is theirs.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::bytes::{Aligned, Bytes};
use crate::dense::{Activations, DenseKernel, DenseMatrix, FUSED_TOKENS};
use crate::dispatch::Pair;
use crate::kernel::{PackedMatrix, Prepared, STREAMS, TernaryKernel, packed_len};
use crate::ops::{self, Gate, Products, RmsNorm, Sums};
use crate::probe::Arithmetic;
use crate::team::{SharedMut, Team};
use crate::trit::TernaryMatrix;

/// A weight matrix, ready to multiply.
#[derive(Clone)]
pub enum Weights {
    /// Trits, packed; the input is quantised to int8 per token (BitLinear).
    Ternary(TernaryWeights),
    /// Floats or quantised blocks as a file stores them; the input stays f32, or is rounded as they want it.
    Dense {
        /// The kernel that reads the type.
        kernel: &'static dyn DenseKernel,
        /// The stored weights.
        matrix: DenseMatrix,
    },
}

/// Trits packed for the kernels of a [`Pair`]: once where they share a layout, twice where they do not.
#[derive(Clone)]
pub struct TernaryWeights {
    pair: Pair,
    packed: PackedMatrix,
    /// Packed for `pair.prefill`, where its layout is another.
    second: Option<PackedMatrix>,
    about: Trits,
}

/// What a packed matrix does not say of its trits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trits {
    /// What the sums are multiplied by.
    pub scale: f32,
    /// Trits that are 0.
    pub zeros: u64,
    /// Trits that are +1.
    pub plus: u64,
}

impl TernaryWeights {
    /// Packs `w`.
    pub fn pack(pair: Pair, w: &TernaryMatrix) -> Self {
        let second = (!pair.shares_layout()).then(|| pair.prefill.pack(w));
        let count = |trit| w.trits().iter().map(|&t| u64::from(t == trit)).sum::<u64>();
        let about = Trits { scale: w.scale(), zeros: count(0), plus: count(1) };
        Self { pair, packed: pair.decode.pack(w), second, about }
    }

    /// Takes an `n x k` matrix that was packed before: once, or, where the kernels do not share a layout, once for each. `None` where the
    /// bytes are not as many as they should be.
    pub fn from_packed(pair: Pair, n: usize, k: usize, about: Trits, packed: Vec<Bytes>) -> Option<Self> {
        let mut copies = packed.into_iter();
        let mut copy_for = |kernel: &dyn TernaryKernel| {
            let data = copies.next()?;
            (data.len() == packed_len(kernel, n, k)).then_some(PackedMatrix { n, k, data })
        };
        let packed = copy_for(pair.decode)?;
        let second = if pair.shares_layout() { None } else { Some(copy_for(pair.prefill)?) };
        copies.next().is_none().then_some(Self { pair, packed, second, about })
    }

    /// Takes another matrix of this shape, packed before for the same kernels; `None` where it has not as many bytes as this one
    /// ([`Self::from_packed`] packs a row to find out how many those are: 60 µs a matrix).
    pub fn another(&self, about: Trits, packed: Vec<Bytes>) -> Option<Self> {
        if !self.packed().into_iter().map(|own| own.len()).eq(packed.iter().map(|copy| copy.len())) {
            return None;
        }
        let mut copies = packed.into_iter();
        let PackedMatrix { n, k, .. } = self.packed;
        let packed = PackedMatrix { n, k, data: copies.next()? };
        let second = copies.next().map(|data| PackedMatrix { n, k, data });
        Some(Self { pair: self.pair, packed, second, about })
    }

    /// The packed bytes: what [`Self::from_packed`] takes.
    pub fn packed(&self) -> Vec<&Bytes> {
        [Some(&self.packed), self.second.as_ref()].into_iter().flatten().map(|packed| &packed.data).collect()
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.packed.n, self.packed.k)
    }

    /// Scale and counts.
    pub fn about(&self) -> Trits {
        self.about
    }

    /// The kernels.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Kernel and packed matrix for a batch of `m` tokens.
    pub fn at(&self, m: usize) -> (&'static dyn TernaryKernel, &PackedMatrix) {
        let packed = self.second.as_ref().filter(|_| m >= self.pair.prefill_from);
        (self.pair.at(m), packed.unwrap_or(&self.packed))
    }
}

/// `y = x · Wᵀ + bias`.
#[derive(Clone)]
pub struct Linear {
    /// The matrix.
    pub weights: Weights,
    /// One per row.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Packs `w` for one kernel, or for two.
    pub fn ternary(kernels: impl Into<Pair>, w: &TernaryMatrix) -> Self {
        Self { weights: Weights::Ternary(TernaryWeights::pack(kernels.into(), w)), bias: None }
    }

    /// Wraps stored weights; nothing is copied.
    pub fn dense(matrix: DenseMatrix, activations: Activations) -> Self {
        let weights = Weights::Dense { kernel: crate::dense::kernel_for(matrix.ty(), activations), matrix };
        Self { weights, bias: None }
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        match &self.weights {
            Weights::Ternary(ternary) => ternary.packed.n,
            Weights::Dense { matrix, .. } => matrix.n(),
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match &self.weights {
            Weights::Ternary(ternary) => ternary.packed.k,
            Weights::Dense { matrix, .. } => matrix.k(),
        }
    }

    /// The name of the kernel for a batch of `m` tokens.
    pub fn kernel_name(&self, m: usize) -> &'static str {
        match &self.weights {
            Weights::Ternary(ternary) => ternary.at(m).0.info().name,
            Weights::Dense { kernel, .. } => kernel.info().name,
        }
    }

    /// Bytes read to multiply a batch of `m` tokens.
    pub fn weight_bytes(&self, m: usize) -> usize {
        match &self.weights {
            Weights::Ternary(ternary) => ternary.at(m).1.data.len(),
            Weights::Dense { matrix, .. } => matrix.data().len(),
        }
    }

    /// Rows worth giving to one call of the kernel.
    fn rows_per_call(&self, m: usize) -> usize {
        match &self.weights {
            Weights::Ternary(ternary) => ternary.at(m).0.rows_per_call(m),
            // Whole blocks and register tiles of every dense kernel.
            Weights::Dense { .. } if m > FUSED_TOKENS => 96,
            Weights::Dense { .. } => 1,
        }
    }

    /// What it multiplies, which says what limit it is held against.
    pub fn arithmetic(&self) -> Arithmetic {
        match &self.weights {
            Weights::Ternary(_) => Arithmetic::Ternary,
            Weights::Dense { kernel, .. } => kernel.info().arithmetic(),
        }
    }

    /// Bytes held: both copies, where there are two.
    pub fn held_bytes(&self) -> usize {
        match &self.weights {
            Weights::Ternary(t) => t.packed.data.len() + t.second.as_ref().map_or(0, |second| second.data.len()),
            Weights::Dense { matrix, .. } => matrix.data().len(),
        }
    }

    /// The bytes packed for it, to be moved to a better place by [`Bytes::gather`].
    pub fn packed_mut(&mut self) -> Vec<&mut Bytes> {
        match &mut self.weights {
            Weights::Ternary(t) => {
                [Some(&mut t.packed), t.second.as_mut()].into_iter().flatten().map(|p| &mut p.data).collect()
            }
            Weights::Dense { .. } => Vec::new(),
        }
    }

    fn row_tile(&self, m: usize) -> usize {
        match &self.weights {
            Weights::Ternary(ternary) => ternary.at(m).0.info().row_tile,
            // A multiple of every dense kernel's register tile (AMX takes two of 16 rows together where there are two), and small
            // enough to share a 640-row matrix evenly.
            Weights::Dense { .. } => 16,
        }
    }
}

/// Buffers for prepared inputs, reused from call to call.
#[derive(Default)]
pub struct Scratch {
    /// Rows of [`Input::Normed`] as floats, where a matrix of the group wants them.
    rows: Aligned<f32>,
    quantized: QuantizedActivations,
    /// The input as each kernel of the group wants it; mostly one.
    prepared: Vec<(&'static str, Prepared)>,
}

impl Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let prepared =
            self.prepared.iter().map(|(_, prepared)| prepared.bytes.capacity() + prepared.sums.capacity() * 4);
        self.rows.bytes()
            + self.quantized.values.bytes()
            + 4 * self.quantized.scales.capacity()
            + prepared.sum::<usize>()
    }
}

/// The `m x k` floats that a group of matrices multiplies.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// All of them.
    Rows(&'a [f32]),
    /// What a norm makes of them: for ternary matrices they are normalised while they are quantised, and not stored.
    Normed(&'a [f32], RmsNorm<'a>),
}

/// What a group's input is multiplied by, what becomes of the products, and where they go.
pub struct Output<'a> {
    product: Product<'a>,
    y: &'a mut [f32],
}

struct Product<'a> {
    linear: &'a Linear,
    then: Then<'a>,
}

/// What becomes of a product, while it is in the cache.
enum Then<'a> {
    Store,
    /// It is added to what is there, times this.
    Add(f32),
    /// It goes through the gate, with the product of another matrix beside it.
    Gate(&'a Linear, Gate),
}

impl<'a> Output<'a> {
    /// `y = x · Wᵀ`, `m x n`.
    pub fn store(linear: &'a Linear, y: &'a mut [f32]) -> Self {
        Self { product: Product { linear, then: Then::Store }, y }
    }

    /// `y += scale · (x · Wᵀ)`.
    pub fn add(linear: &'a Linear, scale: f32, y: &'a mut [f32]) -> Self {
        Self { product: Product { linear, then: Then::Add(scale) }, y }
    }

    /// `y = activation(x · Gᵀ) · (x · Uᵀ)`; panics where the matrices have not the same number of rows.
    pub fn gated(gate: &'a Linear, up: &'a Linear, activate: Gate, y: &'a mut [f32]) -> Self {
        assert_eq!(gate.n(), up.n(), "a gate takes one value of each matrix");
        Self { product: Product { linear: gate, then: Then::Gate(up, activate) }, y }
    }
}

impl<'a> Product<'a> {
    /// The matrices.
    fn linears(&self) -> impl Iterator<Item = &'a Linear> {
        let second = match self.then {
            Then::Gate(up, _) => Some(up),
            Then::Store | Then::Add(_) => None,
        };
        std::iter::once(self.linear).chain(second)
    }

    /// Rows that are computed together.
    fn row_tile(&self, m: usize) -> usize {
        // Kernels' tiles are multiples of each other, so the largest is whole tiles of each.
        let tile = self.linears().map(|linear| linear.row_tile(m)).max().unwrap_or(1);
        assert!(self.linears().all(|linear| tile.is_multiple_of(linear.row_tile(m))), "tiles that do not fit together");
        tile
    }

    /// Row tiles worth computing at once.
    fn tiles_per_call(&self, m: usize) -> usize {
        self.linears().map(|linear| linear.rows_per_call(m).div_ceil(self.row_tile(m))).max().unwrap_or(1)
    }

    /// Computes the row tiles `tiles`, a few at a time so that the sums stay in the L2 cache (or as many as the kernel wants). An odd
    /// number, where it can be: tokens whose sums are a power of two apart share few sets of the L1 cache. 32 tokens, 4 KB apart, took
    /// 1.05 times as long on one thread of Emerald Rapids.
    fn compute(&self, x: &[f32], m: usize, scratch: &Scratch, tiles: Range<usize>, y: &SharedMut<'_, f32>) {
        const SUMS: usize = 64 * 1024;
        let (n, tile) = (self.linear.n(), self.row_tile(m));
        let step = SUMS / (tile * m).max(1);
        let step = if m > 1 { step.saturating_sub(1) | 1 } else { step.max(1) };
        let step = step.next_multiple_of(self.tiles_per_call(m));
        BUFFERS.with_borrow_mut(|[sums, sums_up]| {
            for start in tiles.clone().step_by(step) {
                let rows = start * tile..((start + step).min(tiles.end) * tile).min(n);
                // SAFETY: `Team::stream` gives every tile to one worker, and tiles are disjoint row ranges.
                let mut y = unsafe { y.columns(n, rows.clone()) };
                let products = sums.compute(self.linear, x, m, scratch, rows.clone());
                match self.then {
                    Then::Store => ops::store(&products, &mut y),
                    Then::Add(scale) => ops::add_scaled(&products, scale, &mut y),
                    Then::Gate(up, gate) => gate(&products, &sums_up.compute(up, x, m, scratch, rows), &mut y),
                }
            }
        });
    }
}

/// Multiplies `x` by every matrix of `group`, which share the input, in one parallel region.
pub fn multiply(team: &Team, scratch: &mut Scratch, x: Input<'_>, m: usize, group: &mut [Output<'_>]) {
    prepare(team, scratch, x, m, group);
    compute(team, scratch, x, m, group);
}

/// The first half of [`multiply`]: makes and quantises `x` and brings it into the form of every kernel of `group`, once each.
pub fn prepare(team: &Team, scratch: &mut Scratch, x: Input<'_>, m: usize, group: &[Output<'_>]) {
    let Some(k) = group.first().map(|first| first.product.linear.k()) else {
        return;
    };
    let Scratch { rows, quantized, prepared } = scratch;
    let linears = || group.iter().flat_map(|output| output.product.linears());
    let is_dense = |linear: &Linear| matches!(linear.weights, Weights::Dense { .. });
    let (given, norm) = match x {
        Input::Rows(rows) => (rows, None),
        Input::Normed(rows, norm) => (rows, Some(norm)),
    };
    assert_eq!(given.len(), m * k, "the input does not hold m * k values");
    if let (Some(norm), true) = (norm, linears().any(is_dense)) {
        rows.resize(m * k);
        ops::for_each_row(team, rows, k, |token, row| ops::rms_norm(&given[token * k..][..k], norm, row));
    }
    if !linears().all(is_dense) {
        ops::quantize(team, given, norm, k, quantized);
    }
    let mut n_prepared = 0;
    for linear in linears() {
        let name = linear.kernel_name(m);
        if prepared[..n_prepared].iter().any(|(prepared_for, _)| *prepared_for == name) {
            continue;
        }
        if prepared.len() == n_prepared {
            prepared.push((name, Prepared::default()));
        }
        let slot = &mut prepared[n_prepared];
        slot.0 = name;
        match &linear.weights {
            Weights::Ternary(ternary) => ternary.at(m).0.prepare(team, quantized, &mut slot.1),
            Weights::Dense { kernel, .. } => {
                let x = if let Input::Rows(x) = x { x } else { &rows[..] };
                kernel.prepare(team, x, m, k, &mut slot.1.bytes);
            }
        }
        n_prepared += 1;
    }
}

/// The second half: multiplies what [`prepare`] left in `scratch` for the same input and group, adds the biases, applies the scales.
pub fn compute(team: &Team, scratch: &Scratch, x: Input<'_>, m: usize, group: &mut [Output<'_>]) {
    let Some(k) = group.first().map(|first| first.product.linear.k()) else {
        return;
    };
    let x = match x {
        Input::Rows(rows) => {
            assert_eq!(rows.len(), m * k, "the input does not hold m * k values");
            rows
        }
        Input::Normed(..) => &scratch.rows[..],
    };
    let mut outputs = Vec::with_capacity(group.len());
    let (mut n_tiles, mut per_call) = (0, 1);
    for Output { product, y } in group {
        assert!(product.linears().all(|linear| linear.k() == k), "the matrices of a group share one input");
        assert_eq!(y.len(), m * product.linear.n(), "an output does not hold m * n values");
        let first_tile = n_tiles;
        n_tiles += product.linear.n().div_ceil(product.row_tile(m));
        per_call = per_call.max(product.tiles_per_call(m));
        outputs.push((first_tile..n_tiles, &*product, SharedMut::new(y)));
    }
    team.stream(n_tiles, tiles_per_range(n_tiles, per_call, team.n_threads()), |tiles| {
        for (range, product, y) in &outputs {
            let tiles = tiles.start.max(range.start)..tiles.end.min(range.end);
            if !tiles.is_empty() {
                product.compute(x, m, scratch, tiles.start - range.start..tiles.end - range.start, y);
            }
        }
    });
}

/// How many of `n_tiles` row tiles a worker claims at once. 4 to 16 ranges a worker: enough to even out a core that is disturbed, few enough to
/// stream; the size by which all workers get the same, if possible a multiple of [`STREAMS`], which is worth less than equal shares. Where the
/// kernel wants larger ranges, as many for each worker.
fn tiles_per_range(n_tiles: usize, per_call: usize, n_threads: usize) -> usize {
    let in_eights = n_tiles.div_ceil(8 * n_threads);
    if n_threads == 1 || n_tiles == 0 {
        return n_tiles.max(1);
    }
    if per_call > in_eights {
        return n_tiles.div_ceil(n_tiles.div_ceil(per_call).next_multiple_of(n_threads));
    }
    let least = in_eights.next_multiple_of(per_call);
    // Of so many a range more or less makes no difference, and they are not to be tried while workers wait.
    if in_eights > 32 {
        return least;
    }
    let largest_share = |size: usize| n_tiles.div_ceil(size).div_ceil(n_threads) * size;
    (in_eights.div_ceil(2).next_multiple_of(per_call)..=2 * in_eights)
        .step_by(per_call)
        .min_by_key(|&size| (largest_share(size), !size.is_multiple_of(STREAMS), Reverse(size)))
        .unwrap_or(least)
}

thread_local! {
    /// For sums that a thread computes: of a matrix, and of another beside it.
    static BUFFERS: RefCell<[SumsBuffer; 2]> = RefCell::default();
}

/// For the bits of int32 or f32 sums.
#[derive(Default)]
struct SumsBuffer(Aligned<u32>);

impl SumsBuffer {
    /// Multiplies `rows` of `linear`, which begin with a tile of its kernel and end with one or with the matrix.
    fn compute<'a>(
        &'a mut self,
        linear: &'a Linear,
        x: &[f32],
        m: usize,
        scratch: &'a Scratch,
        rows: Range<usize>,
    ) -> Products<'a> {
        let name = linear.kernel_name(m);
        let prepared = scratch.prepared.iter().find(|(prepared_for, _)| *prepared_for == name);
        let (_, prepared) = prepared.expect("`prepare` ran for this group");
        let bias = linear.bias.as_ref().map(|bias| &bias[rows.clone()]);
        let (stride, kind) = match &linear.weights {
            Weights::Ternary(ternary) => {
                let (kernel, packed) = ternary.at(m);
                let padded = rows.start..rows.end.next_multiple_of(kernel.info().row_tile);
                let stride = padded.len();
                self.0.resize(m * stride);
                kernel.compute(packed, prepared, padded, bytemuck::cast_slice_mut(&mut self.0));
                (stride, Sums::I32 { scale: ternary.about.scale, scales: &scratch.quantized.scales })
            }
            Weights::Dense { kernel, matrix } => {
                let stride = rows.len();
                self.0.resize(m * stride);
                kernel.compute(matrix, x, &prepared.bytes, m, rows, bytemuck::cast_slice_mut(&mut self.0));
                (stride, Sums::F32)
            }
        };
        Products { sums: &self.0, stride, kind, bias }
    }
}

#[cfg(test)]
mod tests {
    use super::tiles_per_range;

    #[test]
    fn workers_get_equal_shares_of_tiles_in_ranges_that_suit_the_kernel() {
        // The matrices of 2B4T in tiles of 32 rows, q, k, v together, and a few tiles.
        for (n_tiles, n_threads, expected) in
            [(80, 2, 8), (120, 2, 12), (216, 2, 12), (80, 8, 2), (216, 8, 3), (3, 4, 1)]
        {
            assert_eq!(tiles_per_range(n_tiles, 1, n_threads), expected, "{n_tiles} tiles, {n_threads} threads");
        }
        for n_tiles in (0..300).chain([6912]) {
            for (per_call, n_threads) in [(1, 1), (1, 3), (4, 2), (6, 2), (20, 4)] {
                let size = tiles_per_range(n_tiles, per_call, n_threads);
                let share = n_tiles.div_ceil(size).div_ceil(n_threads) * size;
                let least = n_tiles.div_ceil(n_threads);
                assert!(
                    size > 0 && (least..least + size.max(per_call)).contains(&share),
                    "{n_tiles} {per_call} {n_threads}: {size}"
                );
            }
        }
    }
}

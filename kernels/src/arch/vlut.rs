//! What the vlut kernels share, on every instruction set: tokens as lanes. A table holds, for every code of four weights, a
//! vector over tokens of their sums, and a row adds one such vector per code. No multiplication, no shuffle.
//!
//! The four tables of a slice (21 KB for 32 tokens) stay in the L1 cache while all rows stream by; so a row adds 4 entries between
//! loading and storing its sums. Building the tables is one store per vector of an entry, 4·81 entries: about as much as 100 rows
//! cost. So it pays to call with many rows.
//!
//! Sums are int16, and widened to int32 before they could overflow; [`crate::lanes`] says when. An instruction set is a
//! [`Vectors`]; a kernel takes two of them, so that it may use a narrower one where half of the tokens are padding.

use std::marker::PhantomData;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::Token;
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::lanes::{self, Column, LANES};
use crate::layout::vlut::{self, N_CODES, Quad, TILE_K, TILE_ROWS};
use crate::team::Team;
use crate::trit::TernaryMatrix;

pub use crate::layout::vlut::{GROUP, GROUPS};

/// Entries of the four tables of a slice, one table after the other, and as many more as a byte that is no code could reach.
pub const ENTRIES: usize = (GROUPS - 1) * N_CODES + 256;
/// Rows whose int16 sums are kept in the L2 cache while the tables change: at most 160 KB.
const ROWS: usize = 2560;

/// How an instruction set adds vectors over tokens.
pub trait Vectors: Send + Sync + 'static {
    /// Proof that the CPU has it.
    type Proof: Token;
    /// An int16 for each of the first tokens of 32.
    type Entry: Copy + Send;
    /// Zeros.
    const ZERO: Self::Entry;

    /// Fills the tables of a slice's groups: `Σ trit · x` for every code, by [`entry_index`].
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn build(columns: &[Column; TILE_K], tables: &mut [Self::Entry; ENTRIES]);

    /// Adds every row's four entries to its sums; where `FIRST`, the old sums count as 0.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn add<const FIRST: bool>(quads: &[Quad], tables: &[Self::Entry; ENTRIES], sums: &mut [Self::Entry]);

    /// Adds the sums of whole tiles of 8 rows to `acc`, transposed: the rows of a token lie together there, those of the next
    /// token `stride` further. Tokens beyond the end of `acc` are padding.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn widen(sums: &[Self::Entry], acc: &mut [i32], stride: usize);
}

/// Where the entry of group `group` for a code lies: never out of bounds, whatever the byte, and so not checked.
#[inline(always)]
pub fn entry_index(group: usize, code: u8) -> usize {
    group % GROUPS * N_CODES + usize::from(code)
}

/// A kernel of 32 tokens at a time by `W`, or of 16 by `N` where there are no more.
pub struct Vlut<N, W: Vectors>(#[allow(dead_code, reason = "the proof of support")] W::Proof, PhantomData<N>);

/// Declares a kernel: `Narrow, Wide, "name", "summary"`.
macro_rules! kernel {
    ($narrow:ty, $wide:ty, $name:literal, $summary:literal) => {
        /// See the module.
        pub type VlutAdd = $crate::arch::vlut::Vlut<$narrow, $wide>;

        impl $crate::arch::vlut::Named for VlutAdd {
            const NAME: &'static str = $name;
            const SUMMARY: &'static str = $summary;
        }
    };
}
pub(super) use kernel;

/// A pair that is a kernel.
pub trait Named {
    /// Its name.
    const NAME: &'static str;
    /// Its summary.
    const SUMMARY: &'static str;
}

impl<N: Vectors<Proof = W::Proof>, W: Vectors> Vlut<N, W>
where
    Self: Named,
{
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: Self::NAME,
        summary: Self::SUMMARY,
        features: W::Proof::FEATURES,
        layout: "vlut",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "Vec-LUT (arXiv 2512.06443)",
    };

    /// The kernel, where the CPU has the instruction set.
    pub fn new() -> Option<Self> {
        W::Proof::detect().map(|proof| Self(proof, PhantomData))
    }
}

impl<N: Vectors<Proof = W::Proof>, W: Vectors> TernaryKernel for Vlut<N, W>
where
    Self: Named,
{
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn rows_per_call(&self, _m: usize) -> usize {
        ROWS
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        vlut::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        lanes::fill(team, x, TILE_K, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(x.stride, w.k.next_multiple_of(TILE_K) * LANES, "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        acc.fill(0);
        for (chunk, acc) in acc.chunks_mut((LANES * rows.len()).max(1)).enumerate() {
            // SAFETY: `self` holds the proof of `W`, which is that of `N` too, and only run-time detection hands it out.
            unsafe {
                if acc.len() <= LANES / 2 * rows.len() {
                    tokens::<N>(w, x, chunk, rows.clone(), acc);
                } else {
                    tokens::<W>(w, x, chunk, rows.clone(), acc);
                }
            }
        }
    }
}

/// The tables of a slice, and sums of a block of columns. An entry lies in one cache line.
#[repr(C, align(64))]
struct Scratch<E> {
    tables: [E; ENTRIES],
    sums: [E; ROWS],
}

/// All rows for the tokens of a chunk.
///
/// # Safety
/// The CPU has the instruction set of `V`.
unsafe fn tokens<V: Vectors>(w: &PackedMatrix, x: &Prepared, chunk: usize, rows: Range<usize>, acc: &mut [i32]) {
    let columns = lanes::of(x, chunk).as_chunks().0;
    let mut scratch = Scratch { tables: [V::ZERO; ENTRIES], sums: [V::ZERO; ROWS] };
    for first in rows.clone().step_by(ROWS) {
        let rows_here = first..rows.end.min(first + ROWS);
        let sums = &mut scratch.sums[..rows_here.len()];
        for block in lanes::blocks(x, chunk) {
            for slice in block.clone() {
                let quads = vlut::slice(w, slice, rows_here.clone());
                // SAFETY: by this function's contract.
                unsafe {
                    V::build(&columns[slice], &mut scratch.tables);
                    if slice == block.start {
                        V::add::<true>(quads, &scratch.tables, sums);
                    } else {
                        V::add::<false>(quads, &scratch.tables, sums);
                    }
                }
            }
            // SAFETY: by this function's contract.
            unsafe { V::widen(sums, &mut acc[first - rows.start..], rows.len()) };
        }
    }
}

//! What the interleaved layouts (`i2s`, `b3`, `t5`) share: tiles of 32 rows, so that a vector holds the same few columns of
//! many rows and every row keeps its sum in a lane of its own.
//!
//! A tile is made of planes of 128 bytes: 32 dwords, one per row. Byte `j` of a row's dword holds columns `j`, `4 + j`, `8 + j`
//! and so on of its plane, so that whatever a decoder takes out of all four bytes at once are 4 neighbouring columns, which
//! meet one broadcast dword of activations. The tiles of 32 rows follow each other along `k`.

use std::ops::Range;

use crate::bytes::AlignedBytes;
use crate::kernel::PackedMatrix;
use crate::trit::TernaryMatrix;

/// Rows of a tile. `n` is padded to a multiple of it.
pub const TILE_ROWS: usize = 32;
/// Bytes of a plane: a dword for each row.
pub const PLANE_BYTES: usize = 4 * TILE_ROWS;

/// The size of a layout's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Columns of a tile. `k` is padded to a multiple of it.
    pub columns: usize,
    /// Planes of a tile.
    pub planes: usize,
}

impl Shape {
    /// Bytes of a tile.
    pub const fn bytes(self) -> usize {
        self.planes * PLANE_BYTES
    }

    /// Where the tiles of rows `32 index .. 32 index + 32` of a matrix with `k` columns lie.
    pub fn row_tile(self, k: usize, index: usize) -> Range<usize> {
        let bytes = k.div_ceil(self.columns) * self.bytes();
        index * bytes..(index + 1) * bytes
    }

    /// Lays out `w`: `write(tile, r, trits)` stores the `columns` trits of row `r` of a tile that was all zero bytes. Padded
    /// rows and columns are written as zero trits.
    pub fn pack(self, w: &TernaryMatrix, write: impl Fn(&mut [u8], usize, &[i8])) -> PackedMatrix {
        let (n, k) = (w.n(), w.k());
        let n_row_tiles = n.div_ceil(TILE_ROWS);
        let mut data = AlignedBytes::zeroed(n_row_tiles * self.row_tile(k, 0).len());
        let mut padded = vec![0; self.columns];
        for index in 0..n_row_tiles {
            let tiles = &mut data[self.row_tile(k, index)];
            for r in 0..TILE_ROWS {
                let row = index * TILE_ROWS + r;
                let mut trits = if row < n { w.row(row) } else { &[] }.chunks(self.columns);
                for tile in tiles.chunks_exact_mut(self.bytes()) {
                    let trits = trits.next().unwrap_or_default();
                    if trits.len() == self.columns {
                        write(tile, r, trits);
                    } else {
                        padded.fill(0);
                        padded[..trits.len()].copy_from_slice(trits);
                        write(tile, r, &padded);
                    }
                }
            }
        }
        PackedMatrix { n, k, data: data.into() }
    }

    /// The trits of a packed matrix, row-major, without padding: `read(tile, r, trits)` is the reverse of `write` above.
    pub fn unpack(self, packed: &PackedMatrix, read: impl Fn(&[u8], usize, &mut [i8])) -> Vec<i8> {
        let mut trits = Vec::with_capacity(packed.n * packed.k.next_multiple_of(self.columns));
        let mut columns = vec![0; self.columns];
        for row in 0..packed.n {
            let tiles = &packed.data[self.row_tile(packed.k, row / TILE_ROWS)];
            for tile in tiles.chunks_exact(self.bytes()) {
                read(tile, row % TILE_ROWS, &mut columns);
                trits.extend_from_slice(&columns);
            }
            trits.truncate((row + 1) * packed.k);
        }
        trits
    }
}

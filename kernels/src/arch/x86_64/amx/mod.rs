//! Kernels for AMX, whose tile registers hold 16 rows of 64 bytes and multiply 16 x 64 by 64 x 16 int8 in 16 cycles.

pub mod t5_tdpbssd;

/// What `ldtilecfg` reads: the shapes of the tile registers.
#[repr(C, align(64))]
pub(crate) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// So many rows, at most 16, of so many bytes, at most 64, for each of the eight; no rows where one is not used.
    pub const fn new(tiles: [(usize, usize); 8]) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < 8 {
            if tiles[i].0 > 0 {
                config.rows[i] = tiles[i].0 as u8;
                config.row_bytes[i] = tiles[i].1 as u16;
            }
            i += 1;
        }
        config
    }
}

//! Kernels for AMX, whose tile registers hold 16 rows of 64 bytes and multiply 16 x 64 by 64 x 16 int8 in 16 cycles.

pub mod t5_tdpbssd;

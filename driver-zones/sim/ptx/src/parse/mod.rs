//! From PTX text to statements. What a statement means is `lower`'s business.

mod body;
mod cursor;
mod declaration;
mod error;
mod initializer;
mod lexer;
mod module;
mod statement;

pub use error::PtxError;

pub(crate) use cursor::Cursor;
pub(crate) use error::shown;
pub(crate) use initializer::Initializer;
pub(crate) use module::parse_module;
pub(crate) use statement::{Operand, Statement};

/// The longest text that is looked at. nvcc's output for a large library stays
/// below a tenth of it.
const MAX_SOURCE_BYTES: usize = 32 << 20;

//! Tables for other programs: CSV, JSON, JSON lines, Parquet. Numbers are written in full; what was not measured is empty or null.

use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value as Json};

use crate::table::{Column, Kind, Table, Value};

/// A format that tables are printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Markdown table, rounded for people.
    Markdown,
    /// Comma-separated values with a header, quoted where needed (RFC 4180).
    Csv,
    /// One array of objects.
    Json,
    /// One object per line.
    Jsonl,
    /// Apache Parquet: one row group, dictionary-encoded, every column optional.
    Parquet,
}

/// Why a table could not be exported.
#[derive(Debug, thiserror::Error)]
#[error("a table cannot be written as Parquet: {0}")]
pub struct ExportError(#[from] ParquetError);

/// A table in a format; text ends with a newline.
///
/// # Errors
/// When Parquet refuses.
pub fn write(table: &Table, format: Format) -> Result<Vec<u8>, ExportError> {
    Ok(match format {
        Format::Markdown => table.markdown().into_bytes(),
        Format::Csv => csv(table).into_bytes(),
        Format::Json => format!("{:#}\n", Json::Array(objects(table).map(Json::Object).collect())).into_bytes(),
        Format::Jsonl => objects(table).map(|object| format!("{}\n", Json::Object(object))).collect::<String>().into(),
        Format::Parquet => parquet(table)?,
    })
}

/// Names of the columns that programs get: an estimate is four.
pub fn keys(table: &Table) -> Vec<String> {
    table.columns.iter().flat_map(|column| suffixes(column).iter().map(|end| format!("{}{end}", column.key))).collect()
}

fn suffixes(column: &Column) -> &'static [&'static str] {
    if matches!(column.kind, Kind::Estimate | Kind::Ratio) { &["", "_low", "_high", "_n"] } else { &[""] }
}

/// The values of one row, as many as [`keys`].
fn values(table: &Table, row: &[Value]) -> Vec<Value> {
    let mut values = Vec::new();
    for (column, value) in table.columns.iter().zip(row) {
        match value {
            Value::Estimate(e) => values.extend([e.value.into(), e.low.into(), e.high.into(), e.n.into()]),
            value => {
                values.push(value.clone());
                values.resize(values.len() + suffixes(column).len() - 1, Value::None);
            }
        }
    }
    values
}

fn csv(table: &Table) -> String {
    let field = |text: &str| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let cell = |value: &Value| match value {
        Value::Text(text) => field(text),
        Value::Count(count) => count.to_string(),
        Value::Number(number) if number.is_finite() => number.to_string(),
        _ => String::new(),
    };
    let mut csv = keys(table).join(",") + "\n";
    for row in &table.rows {
        csv += &(values(table, row).iter().map(cell).collect::<Vec<_>>().join(",") + "\n");
    }
    csv
}

fn objects(table: &Table) -> impl Iterator<Item = Map<String, Json>> + '_ {
    let json = |value| match value {
        Value::Text(text) => Json::String(text),
        Value::Count(count) => count.into(),
        Value::Number(number) => Number::from_f64(number).map_or(Json::Null, Json::Number),
        Value::None | Value::Estimate(_) => Json::Null,
    };
    let keys = keys(table);
    table.rows.iter().map(move |row| keys.iter().cloned().zip(values(table, row).into_iter().map(json)).collect())
}

/// A column is floating point if any of its values is, else whole numbers if any is, else text.
fn parquet(table: &Table) -> Result<Vec<u8>, ExportError> {
    let rows: Vec<Vec<Value>> = table.rows.iter().map(|row| values(table, row)).collect();
    let keys = keys(table);
    let physical = |i: usize| {
        let any = |wanted: fn(&Value) -> bool| rows.iter().any(|row| wanted(&row[i]));
        match (any(|value| matches!(value, Value::Number(_))), any(|value| matches!(value, Value::Count(_)))) {
            (true, _) => Physical::DOUBLE,
            (_, true) => Physical::INT64,
            _ => Physical::BYTE_ARRAY,
        }
    };
    let types: Vec<Physical> = (0..keys.len()).map(physical).collect();
    let fields = keys.iter().zip(&types).map(|(key, &physical)| {
        let text = (physical == Physical::BYTE_ARRAY).then_some(LogicalType::String);
        let field = Type::primitive_type_builder(key, physical).with_repetition(Repetition::OPTIONAL);
        Ok(Arc::new(field.with_logical_type(text).build()?))
    });
    let fields = fields.collect::<Result<Vec<_>, ParquetError>>()?;
    let schema = Arc::new(Type::group_type_builder("ternbench").with_fields(fields).build()?);
    let properties = WriterProperties::builder().set_compression(Compression::UNCOMPRESSED).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for (i, physical) in types.into_iter().enumerate() {
        let Some(mut column) = group.next_column()? else { break };
        let present: Vec<i16> = rows.iter().map(|row| i16::from(row[i] != Value::None)).collect();
        let column_values = rows.iter().map(|row| &row[i]);
        match physical {
            Physical::BYTE_ARRAY => {
                let text = column_values.filter_map(|value| match value {
                    Value::Text(text) => Some(ByteArray::from(text.as_str())),
                    _ => None,
                });
                column.typed::<ByteArrayType>().write_batch(&text.collect::<Vec<_>>(), Some(&present), None)?;
            }
            Physical::INT64 => {
                let counts = column_values.filter_map(|value| match value {
                    Value::Count(count) => Some(*count as i64),
                    _ => None,
                });
                column.typed::<Int64Type>().write_batch(&counts.collect::<Vec<_>>(), Some(&present), None)?;
            }
            _ => {
                let numbers = column_values.filter_map(|value| match value {
                    Value::Number(number) => Some(*number),
                    Value::Count(count) => Some(*count as f64),
                    _ => None,
                });
                column.typed::<DoubleType>().write_batch(&numbers.collect::<Vec<_>>(), Some(&present), None)?;
            }
        }
        column.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;
    use crate::table::sample;

    fn text(format: Format) -> String {
        String::from_utf8(write(&sample(), format).expect("writes")).expect("UTF-8")
    }

    #[test]
    fn parquet_can_be_read_back() {
        let bytes = write(&sample(), Format::Parquet).expect("writes");
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("Parquet");
        let rows: Vec<String> =
            reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row").to_string()).collect();
        assert_eq!(rows.len(), 2);
        assert!(rows[0].contains("name: \"a|b\"") && rows[0].contains("tokens_per_s_low: 12.0"), "{}", rows[0]);
        assert!(rows[0].contains("size_bytes: 1500000000") && rows[1].contains("tokens_per_s: null"), "{rows:?}");
    }

    #[test]
    fn programs_get_every_number_in_full() {
        let csv = text(Format::Csv);
        let expected = "\
name,raw,tokens_per_s,tokens_per_s_low,tokens_per_s_high,tokens_per_s_n,ratio,ratio_low,ratio_high,ratio_n,share,size_bytes
a|b,\"x,\"\"y\"\"\",12.345,12,123.4,5,2,,,,0.875,1500000000
c,z,,,,,,,,,,
";
        assert_eq!(csv, expected);
    }

    #[test]
    fn json_and_lines_hold_the_same() {
        let lines = text(Format::Jsonl);
        let lines: Vec<Json> = lines.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        let array: Json = serde_json::from_str(&text(Format::Json)).expect("an array");
        assert_eq!(array, Json::Array(lines.clone()));
        assert_eq!(lines[0]["tokens_per_s_low"], 12.0);
        assert_eq!(lines[0]["size_bytes"], 1_500_000_000_u64);
        assert!(lines[1]["share"].is_null());
    }
}

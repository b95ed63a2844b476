//! Streams: chunks under dense indexes, written by many, read by page or live.

mod reader;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use sqlx::Row;

use crate::database::{Database, Statement};
use crate::error::{Error, Result};
pub use reader::StreamReader;
use writer::Write;

const DEFAULT_LIMIT: i64 = 100;
const MAX_LIMIT: i64 = 1000;
const MAX_PAGE_BYTES: i64 = 8 << 20;
/// What an index entry surely holds. NOTIFY would take more.
const MAX_NAME_LENGTH: usize = 2000;

#[derive(Clone)]
pub struct Streams(Arc<Shared>);

struct Shared {
    database: Arc<Database>,
    append: Statement,
    info: Statement,
    list: Statement,
    /// By stream: what is to be written next. An entry exists while a task writes that stream.
    writes: Mutex<HashMap<String, VecDeque<Write>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub index: i64,
    pub data: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkPage {
    pub chunks: Vec<Chunk>,
    /// Where the next page begins; `None` where no more chunks are stored now.
    pub cursor: Option<String>,
    /// The stream is closed.
    pub done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamInfo {
    /// The index of the last chunk, -1 where there is none.
    pub tail_index: i64,
    /// The stream is closed.
    pub done: bool,
}

impl Streams {
    pub fn new(database: Arc<Database>) -> Self {
        Self(Arc::new(Shared {
            append: database.render(include_str!("sql/append.sql")),
            info: database.render(include_str!("sql/info.sql")),
            list: database.render(include_str!("sql/list.sql")),
            writes: Mutex::default(),
            database,
        }))
    }

    /// Each chunk becomes one chunk of the stream. Returns once they are committed. Writes to one
    /// stream take effect in the order of these calls; after the first close they are ignored.
    pub async fn append(&self, name: &str, run_id: &str, chunks: Vec<Vec<u8>>) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        writer::write(&self.0, name, run_id, chunks, false).await
    }

    pub async fn close(&self, name: &str, run_id: &str) -> Result<()> {
        writer::write(&self.0, name, run_id, Vec::new(), true).await
    }

    pub async fn info(&self, name: &str) -> Result<StreamInfo> {
        check_text("name", name)?;
        let Shared { database, info, .. } = &*self.0;
        let rows = database.fetch_all(|| database.query(info).bind(name.to_owned())).await?;
        Ok(match rows.first() {
            Some(row) => StreamInfo {
                tail_index: i64::from(row.try_get::<i32, _>("next_index")?) - 1,
                done: row.try_get("closed")?,
            },
            None => StreamInfo { tail_index: -1, done: false },
        })
    }

    /// A page of what is stored now. It can be shorter than `limit` where chunks are large. A cursor
    /// that is not one of ours starts over.
    pub async fn chunks(&self, name: &str, limit: Option<i64>, cursor: Option<&str>) -> Result<ChunkPage> {
        let start = cursor.and_then(|cursor| cursor.parse::<u32>().ok()).unwrap_or(0);
        let limit = limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
        let page = self.0.page(name, start.into(), limit, MAX_PAGE_BYTES).await?;
        Ok(ChunkPage {
            cursor: (page.next < page.stored).then(|| page.next.to_string()),
            chunks: page.chunks,
            done: page.closed,
        })
    }

    /// The names of the streams of a run, oldest first.
    pub async fn list(&self, run_id: &str) -> Result<Vec<String>> {
        check_text("run id", run_id)?;
        let Shared { database, list, .. } = &*self.0;
        let rows = database.fetch_all(|| database.query(list).bind(run_id.to_owned())).await?;
        rows.iter().map(|row| Ok(row.try_get("name")?)).collect()
    }

    /// Reads from `start_index` on, then live until the stream is closed. A negative start counts
    /// from the end as it is at the first [`StreamReader::next`]; nothing is sent before that.
    pub fn reader(&self, name: &str, start_index: Option<i64>) -> StreamReader {
        StreamReader::new(Arc::clone(&self.0), name.to_owned(), start_index.unwrap_or(0))
    }
}

struct Page {
    chunks: Vec<Chunk>,
    /// The index after the last of `chunks`, or where they would have begun.
    next: i64,
    /// How many chunks the stream has.
    stored: i64,
    closed: bool,
}

impl Shared {
    async fn page(&self, name: &str, start: i64, max_chunks: i64, max_bytes: i64) -> Result<Page> {
        check_text("name", name)?;
        // Not a parameter: PostgreSQL would expect another number, and make a plan for each call.
        let read =
            self.database.render(&include_str!("sql/read.sql").replace(":chunks", &max_chunks.to_string()));
        let query = || self.database.query(&read).bind(name.to_owned()).bind(start).bind(max_bytes);
        let rows = self.database.fetch_all(query).await?;
        let Some(first) = rows.first() else {
            return Ok(Page { chunks: Vec::new(), next: start.max(0), stored: 0, closed: false });
        };
        let mut page = Page {
            chunks: Vec::with_capacity(rows.len()),
            next: first.try_get("start")?,
            stored: first.try_get::<i32, _>("next_index")?.into(),
            closed: first.try_get("closed")?,
        };
        for row in &rows {
            // No index: the row of a stream without chunks from the start on.
            if let Some(index) = row.try_get::<Option<i32>, _>("index")?.map(i64::from) {
                page.next = index + 1;
                page.chunks.push(Chunk { index, data: row.try_get("data")? });
            }
        }
        Ok(page)
    }
}

fn check_text(what: &str, text: &str) -> Result<()> {
    if text.len() > MAX_NAME_LENGTH {
        return Err(Error::Invalid(format!(
            "The {what} of a stream may have {MAX_NAME_LENGTH} bytes, this one has {}",
            text.len()
        )));
    }
    if text.contains('\0') {
        return Err(Error::Invalid(format!("The {what} of a stream may not contain a NUL")));
    }
    Ok(())
}

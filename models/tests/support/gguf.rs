//! Writes small GGUF files, well-formed or not: the other direction of the reader, for tests only.

#![allow(dead_code, reason = "each test file uses a part of it")]

/// A file under construction: metadata and tensors are appended in turn.
#[derive(Debug, Clone)]
pub(crate) struct GgufFile {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    entries: Vec<Vec<u8>>,
    tensors: Vec<(Vec<u8>, Vec<u8>)>,
    next_offset: usize,
}

impl GgufFile {
    /// An empty file of version 3.
    pub(crate) fn new() -> GgufFile {
        GgufFile { version: 3, alignment: 32, entries: vec![], tensors: vec![], next_offset: 0 }
    }

    /// Appends an entry with the number of its type and its bytes.
    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> GgufFile {
        self.entries.push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    /// Appends a string.
    pub(crate) fn string(self, key: &str, value: &str) -> GgufFile {
        self.raw(key, 8, &string(value))
    }

    /// Appends a `u32`.
    pub(crate) fn u32(self, key: &str, value: u32) -> GgufFile {
        self.raw(key, 4, &value.to_le_bytes())
    }

    /// Appends an `f32`.
    pub(crate) fn f32(self, key: &str, value: f32) -> GgufFile {
        self.raw(key, 6, &value.to_le_bytes())
    }

    /// Appends a bool.
    pub(crate) fn flag(self, key: &str, value: bool) -> GgufFile {
        self.raw(key, 7, &[u8::from(value)])
    }

    /// Appends a list of strings.
    pub(crate) fn strings(self, key: &str, values: &[&str]) -> GgufFile {
        let items: Vec<Vec<u8>> = values.iter().map(|value| string(value)).collect();
        self.raw(key, 9, &list(8, values.len(), &items.concat()))
    }

    /// Appends a list of `f32`.
    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> GgufFile {
        let items: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key, 9, &list(6, values.len(), &items))
    }

    /// Appends a list of `i32`.
    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> GgufFile {
        let items: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key, 9, &list(5, values.len(), &items))
    }

    /// Appends a tensor with its shape, rows first, the number of its type, and its data.
    pub(crate) fn tensor(self, name: &str, shape: &[u64], kind: u32, data: &[u8]) -> GgufFile {
        let offset = self.next_offset as u64;
        self.tensor_at(name, shape, kind, data, offset)
    }

    /// Appends a tensor that says its data lies at `offset`.
    pub(crate) fn tensor_at(
        mut self,
        name: &str,
        shape: &[u64],
        kind: u32,
        data: &[u8],
        offset: u64,
    ) -> GgufFile {
        let mut info = string(name);
        info.extend((shape.len() as u32).to_le_bytes());
        info.extend(shape.iter().rev().flat_map(|size| size.to_le_bytes()));
        info.extend(kind.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.next_offset = (self.next_offset + data.len()).next_multiple_of(self.alignment);
        self.tensors.push((info, data.to_vec()));
        self
    }

    /// Appends an F32 tensor.
    pub(crate) fn tensor_f32(self, name: &str, shape: &[u64], values: &[f32]) -> GgufFile {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, shape, 0, &data)
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        out.extend(self.entries.concat());
        for (info, _) in &self.tensors {
            out.extend(info);
        }
        for (_, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(data);
        }
        out
    }
}

/// Length and bytes of a string.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// An array: type and number of its elements, and their bytes.
pub(crate) fn list(kind: u32, count: usize, items: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), items].concat()
}

/// A tiny llama of two heads of four rows, with a tokenizer of three tokens.
pub(crate) fn llama() -> GgufFile {
    let rows: Vec<f32> = (0..64).map(|value| value as f32).collect();
    GgufFile::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 128)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 16)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .u32("llama.rope.dimension_count", 4)
        .f32("llama.rope.freq_base", 100_000.0)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &["<s>", "a", "b"])
        .i32s("tokenizer.ggml.token_type", &[3, 1, 1])
        .strings("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.eot_token_id", 1)
        .flag("tokenizer.ggml.add_bos_token", true)
        .string("tokenizer.chat_template", "{{ messages }}")
        .string("tokenizer.chat_template.tool_use", "{{ tools }}")
        .tensor_f32("token_embd.weight", &[3, 8], &rows[..24])
        .tensor_f32("blk.0.attn_q.weight", &[8, 8], &rows)
        .tensor_f32("blk.0.attn_k.weight", &[4, 8], &rows[..32])
        .tensor_f32("output_norm.weight", &[8], &rows[..8])
}

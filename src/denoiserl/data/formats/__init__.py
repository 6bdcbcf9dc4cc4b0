"""Read and write recorded episodes in the formats of other libraries."""

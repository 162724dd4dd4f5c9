"""The paper's tables and figures: one module a table or figure of the paper."""

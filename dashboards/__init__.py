"""The dashboard: a Streamlit app over the published store, and the docs that it serves."""

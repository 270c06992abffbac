"""The script that Streamlit runs, in a folder of its own: next to a folder named ``pages`` Streamlit would look for pages itself."""

"""Sphinx's configuration of the book, see ``book.py``. Nothing in it comes from another host."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = html_title = "Matryoshka embeddings, measured"
extensions = ["myst_nb"]
root_doc = "index"
exclude_patterns = ["download", "helpers"]  # to be downloaded as they are

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": False,
    "navbar_persistent": [],  # the search is in the sidebar
    "footer_content_items": [],
}
html_static_path = html_css_files = ["book.css"]
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_math_renderer = "mathml"
html_use_index = False
html_show_copyright = html_show_sphinx = html_copy_source = False


def setup(app):
    def formula(translator, node):
        block = isinstance(node, nodes.math_block)
        mathml = tex2mathml(node.astext(), as_block=block)
        translator.body.append(f'<div class="formula">{mathml}</div>' if block else mathml)
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
